"""Parameterizations: what is changed, step by step, when a picture is made. Zero is the mean pixel in all of them.

Pixels change one by one; the coefficients of a Fourier transform each change the whole picture, coarse structure as easily
as fine. Which of them is used makes no difference to what is wanted, but to which of the pictures is found.
"""

from __future__ import annotations

from typing import Any

import torch

# The square root of the covariance of the colors of ImageNet's pictures, over its largest column:
# C. Olah, A. Mordvintsev, L. Schubert, "Feature visualization", 2017, the code of which gives these numbers
_COLORS = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
_COLORS = _COLORS / _COLORS.norm(dim=0).max()


class Pixels:
    """The pixels themselves, kept in the valid range.

    Parameters
    ----------
    start : (N, C, H, W) tensor in [0, 1]
    origin : (1, C, 1, 1) tensor
        The mean pixel.
    most : float, optional
        How far a pixel may go from where it began.

    Attributes
    ----------
    values : tensor
        What is changed.
    """

    def __init__(self, start: torch.Tensor, origin: torch.Tensor, most: float | None = None) -> None:
        self.origin = origin
        self.values = (start - origin).detach().clone().requires_grad_()
        far = 1.0 if most is None else most
        self._low, self._high = ((start + sign * far).clamp(0, 1) - origin for sign in (-1, 1))

    def picture(self) -> torch.Tensor:
        """The picture less the mean pixel, (N, C, H, W), as a function of `values`."""
        return self.values

    def settle(self) -> None:
        """Bring pixels back that have left [0, 1], or have gone too far."""
        with torch.no_grad():
            torch.clamp(self.values, self._low, self._high, out=self.values)


class Fourier:
    """The coefficients of the picture's Fourier transform, scaled to the spectrum of natural pictures, in colors that vary
    independently of each other there; a sigmoid keeps the pixels in the valid range.

    Olah, Mordvintsev, Schubert, "Feature visualization", 2017, section "Preconditioning and parameterization".

    Parameters and attributes are those of `Pixels`.
    """

    def __init__(self, start: torch.Tensor, origin: torch.Tensor) -> None:
        self.origin, (self._height, self._width) = origin, start.shape[2:]
        rows = torch.fft.fftfreq(self._height)[:, None]
        columns = torch.fft.rfftfreq(self._width)[None]
        lowest = 1 / max(self._height, self._width)
        # ibid.: amplitudes fall with the frequency; a picture of independent coefficients of deviation 0.01 begins as gray
        scale = (self._height * self._width) ** 0.5 / (rows.square() + columns.square()).sqrt().clamp(min=lowest) / 4
        self._scale = scale.to(start)
        self._colors = _COLORS.to(start) if start.shape[1] == 3 else torch.eye(start.shape[1]).to(start)
        # sigmoid's slope is a quarter at its middle, and less elsewhere: the ends are never reached
        even = start.clamp(1e-3, 1 - 1e-3).logit() - origin.logit()
        even = torch.einsum("dc,nchw->ndhw", self._colors.inverse(), even)
        spectrum = torch.view_as_real(torch.fft.rfft2(even)) / self._scale[..., None]
        self.values = spectrum.detach().clone().requires_grad_()

    def picture(self) -> torch.Tensor:
        """The picture less the mean pixel, (N, C, H, W), as a function of `values`."""
        spectrum = torch.view_as_complex(self.values) * self._scale
        even = torch.fft.irfft2(spectrum, s=(self._height, self._width))
        return (torch.einsum("dc,nchw->ndhw", self._colors, even) + self.origin.logit()).sigmoid() - self.origin

    def settle(self) -> None:
        """Nothing leaves the valid range."""


PARAMETERIZATIONS: dict[str, Any] = {"pixels": Pixels, "fourier": Fourier}
