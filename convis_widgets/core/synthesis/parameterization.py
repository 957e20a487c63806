"""Parameterizations: the values that an optimizer changes, and the image as a function of them.

A step in pixel space changes each pixel independently; a step in the coefficients of a Fourier transform changes coarse
structure as easily as fine structure. The parameterization does not change the objective, only which optimum is reached.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..network.network import Network

# Square root of the covariance of ImageNet's colors, divided by the norm of its largest column: numbers from the code of
# C. Olah, A. Mordvintsev, L. Schubert, "Feature visualization", 2017
_COLORS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
_COLORS = _COLORS / _COLORS.norm(dim=0).max()


class Pixels:
    """The pixels themselves, clipped to the valid range.

    Parameters
    ----------
    init_images : (N, C, H, W) tensor in [0, 1]
    mean_pixel : (1, C, 1, 1) tensor
    max_change : float, optional
        Largest change of a pixel from its initial value.

    Attributes
    ----------
    values : tensor
        The values to optimize; the mean pixel is zero.
    size : (int, int)
        Height and width of the images.
    """

    def __init__(self, init_images: torch.Tensor, mean_pixel: torch.Tensor, max_change: float | None = None) -> None:
        self.mean_pixel, self.size = mean_pixel, (init_images.shape[2], init_images.shape[3])
        self.values = (init_images - mean_pixel).detach().clone().requires_grad_()
        change = 1.0 if max_change is None else max_change
        self._low, self._high = ((init_images + sign * change).clamp(0, 1) - mean_pixel for sign in (-1, 1))

    def image(self) -> torch.Tensor:
        """Images minus the mean pixel, (N, C, H, W), as a differentiable function of `values`."""
        return self.values

    def project_(self) -> None:
        """Clip the pixels to [0, 1] and to the largest change, in place."""
        with torch.no_grad():
            torch.clamp(self.values, self._low, self._high, out=self.values)


class Fourier:
    """Fourier coefficients of the image, scaled as the spectrum of natural images, in decorrelated colors.

    A sigmoid keeps the pixels in the valid range. Parameters and attributes are those of `Pixels`, except `max_change`.

    References
    ----------
    Olah, Mordvintsev, Schubert, "Feature visualization", 2017, section "Preconditioning and parameterization".
    """

    def __init__(self, init_images: torch.Tensor, mean_pixel: torch.Tensor) -> None:
        self.mean_pixel, self.size = mean_pixel, (init_images.shape[2], init_images.shape[3])
        rows = torch.fft.fftfreq(self.size[0], dtype=torch.float32)[:, None]
        columns = torch.fft.rfftfreq(self.size[1], dtype=torch.float32)[None]
        lowest = 1 / max(self.size)
        # ibid.: amplitudes fall with the frequency; independent coefficients of standard deviation 0.01 give a gray image
        scale = (self.size[0] * self.size[1]) ** 0.5 / (rows.square() + columns.square()).sqrt().clamp(min=lowest) / 4
        self._scale = scale.to(init_images)
        channels = init_images.shape[1]
        self._colors = _COLORS.to(init_images) if channels == 3 else torch.eye(channels).to(init_images)
        # the limits of the sigmoid are never reached
        logits = init_images.clamp(1e-3, 1 - 1e-3).logit() - mean_pixel.logit()
        decorrelated = torch.einsum("dc,nchw->ndhw", self._colors.inverse(), logits)
        spectrum = torch.view_as_real(torch.fft.rfft2(decorrelated)) / self._scale[..., None]
        self.values = spectrum.detach().clone().requires_grad_()

    def image(self) -> torch.Tensor:
        """Images minus the mean pixel, (N, C, H, W), as a differentiable function of `values`."""
        spectrum = torch.view_as_complex(self.values) * self._scale
        decorrelated = torch.fft.irfft2(spectrum, s=self.size)
        logits = torch.einsum("dc,nchw->ndhw", self._colors, decorrelated) + self.mean_pixel.logit()
        return logits.sigmoid() - self.mean_pixel

    def project_(self) -> None:
        """Do nothing: all values are valid."""


PARAMETERIZATIONS: dict[str, Callable[..., Pixels | Fourier]] = {"pixels": Pixels, "fourier": Fourier}


def choose_parameterization(net: Network, optimizer: str) -> str:
    """Choose the parameterization that avoids checkerboard artifacts.

    Where receptive fields of the first layer overlap unevenly, as with 3x3 kernels of stride 2, some pixels get at least
    twice the gradient of others (A. Odena, V. Dumoulin, C. Olah, "Deconvolution and checkerboard artifacts", 2016), which
    shows in an image of independent pixels. Fourier coefficients avoid this, but need more steps for the same loss, and
    with Adam they diverge in uniform regions.

    Parameters
    ----------
    net : Network
    optimizer : str

    Returns
    -------
    str
        "fourier" for uneven overlap and "lbfgs"; "pixels" otherwise.
    """
    receptive_field, stride = net.layers[0].receptive_field, net.layers[0].stride
    if stride is None or isinstance(receptive_field, str):
        return "pixels"
    uneven = any(step < size < 2 * step for size, step in zip(receptive_field, stride, strict=True))
    return "fourier" if uneven and optimizer == "lbfgs" else "pixels"
