"""interleave: several computations in turn, as one."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping

from .frame import Frame


def interleave(
    streams: Mapping[str, Iterator[Frame]],
) -> Generator[tuple[str, Frame | ValueError, Frame], None, None]:
    """Advance several computations in turn, one Frame each, so that a slow one does not delay the others.

    A computation that raises ValueError ends there; the others continue. Any other error ends all of them. All are closed at
    the end.

    Parameters
    ----------
    streams : mapping of str to iterator of Frame
        The computations by name, such as FrameStreams of techniques.

    Yields
    ------
    name : str
        The computation that has advanced.
    result : Frame or ValueError
        Its next Frame, or the error that has ended it.
    progress : Frame
        Sum of the steps and of the totals of the computations that have begun; done if all of them are done.

    Examples
    --------
    >>> streams = {"a": iter([Frame(1, 2), Frame(2, 2, done=True)]), "b": iter([Frame(1, 1, done=True)])}
    >>> [(name, progress) for name, _, progress in interleave(streams)]
    [('a', Frame(1/2)), ('b', Frame(2/3)), ('a', Frame(3/3, done))]
    """
    active, latest = dict(streams), dict[str, Frame]()
    try:
        while active:
            for name in list(active):
                result: Frame | ValueError
                try:
                    result = next(active[name])
                except StopIteration:
                    del active[name]
                    continue
                except ValueError as error:
                    del active[name]
                    result = error
                latest[name] = result if isinstance(result, Frame) else Frame(1, 1, done=True)
                yield name, result, _progress(latest, len(streams))
    finally:
        for frames in active.values():
            getattr(frames, "close", lambda: None)()


def _progress(latest: Mapping[str, Frame], count: int) -> Frame:
    frames = latest.values()
    done = len(latest) == count and all(frame.done for frame in frames)
    return Frame(sum(frame.step for frame in frames), sum(frame.total or frame.step for frame in frames), done=done)
