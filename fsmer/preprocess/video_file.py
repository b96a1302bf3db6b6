"""Video files, decoded by FFmpeg: one class, since passes, seeking and damage are judged by the same time stamps."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

import av
import numpy as np
from numpy.typing import NDArray

from fsmer.data.images import FRAME_PIXELS
from fsmer.errors import DataError, MediaError
from fsmer.io import check_regular
from fsmer.preprocess.frame_source import FALLBACK_RATE, Frame, FrameSource, as_rgb, clean_timestamps, typical_intervals

Damaged = Literal["refuse", "keep"]
# Random access reads on from where it stands when the wanted frame is this near; seeking costs a key frame's distance.
READ_ON = 32
# Pictures whose time stamps are compared with those of the packets before the packets are trusted.
PROBED = 8
# Bytes that FFmpeg asks of a file at once.
BUFFER = 1 << 18
# Containers that begin within so many seconds count their duration from 0, others from their first frame.
LATE_START = 0.5
# Width of a pixel in its heights that a camera may have; anything else is a damaged header.
PIXEL_SHAPES = (Fraction(1, 4), Fraction(4))
# Frames kept after reading, so that asking twice for the same few frames decodes them once.
KEPT_FRAMES = 4
DECODER_ERRORS: tuple[type[Exception], ...] = (av.error.FFmpegError, EOFError, ValueError)


@dataclass(frozen=True)
class _Ticks:
    """Time stamps of all frames in ticks of their stream, rising, and which of them are key frames."""

    ticks: NDArray[np.int64]
    keys: NDArray[np.bool_]

    def reached(self, pictures: Iterable[Any], wanted: int) -> Any | None:
        """The picture of number `wanted`, if a key frame and every time stamp after it lead there."""
        place: int | None = None
        for picture in pictures:
            if picture.pts is None or picture.pts > self.ticks[wanted]:
                return None
            # Pictures before a key frame may lack what they are made from.
            if place is None and picture.key_frame:
                place = int(np.searchsorted(self.ticks, picture.pts))
                # MPEG program streams give wrong times after a seek, which shows at the key frame alone.
                if not self.keys[place]:
                    return None
            if place is not None:
                if picture.pts != self.ticks[place]:
                    return None
                if place == wanted:
                    return picture
                place += 1
        return None


class VideoFile(FrameSource):
    """A video file, decoded by FFmpeg through PyAV; frame-accurate, in the shape and upright as a viewer shows it.

    A file only: names of other places, and playlists that name other files, are not followed. See `open_frames` for the
    arguments. A file that is missing, empty, no video, has too large pictures or a first frame that cannot be decoded
    raises `MediaError`; while reading, so does one that breaks off.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        frames_per_second: float | None = None,
        damaged: Damaged = "refuse",
        white: float | None = None,
    ) -> None:
        self.path = Path(path)
        self.name = str(self.path)
        self.notes: list[str] = []
        self._told_rate, self._damaged, self._white = frames_per_second, damaged, white
        self._reader: Iterator[tuple[int, Frame]] | None = None
        self._next_index = 0
        self._kept: dict[int, Frame] = {}
        self._damage_noted = False
        if damaged not in ("refuse", "keep"):
            raise DataError(f"damaged={damaged!r} is not known; give 'refuse' or 'keep'.")
        try:
            check_regular(self.path)
        except FileNotFoundError as error:
            raise MediaError(f"the video {self.path} does not exist; check the path.") from error
        except (OSError, ValueError) as error:
            raise MediaError(f"the video {self.path} cannot be read ({_reason(error)}); give a video file.") from error
        if self.path.stat().st_size == 0:
            raise MediaError(f"the video {self.path} is empty (zero bytes); copy or record it again.")
        with self._open() as container:
            stream = container.streams.video[0]
            self._header_rates = [float(rate) for rate in (stream.average_rate, stream.guessed_rate) if rate]
            self._header_rate = next(iter(self._header_rates), FALLBACK_RATE)
            self._promised_seconds = _promised_seconds(container, stream)
            self._counted = int(stream.frames)
            self._codec = stream.codec_context.name
            self._pixel_shape = self._checked_shape(stream)
            try:
                first = next(iter(container.decode(stream)), None)
            except DECODER_ERRORS as error:
                raise MediaError(
                    f"no frame of the video {self.path} can be decoded ({_reason(error)}): it is damaged, or its "
                    f"frames have more than {FRAME_PIXELS:,} pixels; copy it again, or make them smaller."
                ) from error
            if first is None:
                raise MediaError(f"the video {self.path} holds no frame that can be decoded; copy or record it again.")
            self._size = cast(tuple[int, int], self._shown(first).shape[:2])

    def __getstate__(self) -> dict[str, Any]:
        # An open decoder cannot be sent to another process; it is opened again there.
        return {**self.__dict__, "_reader": None, "_next_index": 0, "_kept": {}}

    @property
    def count(self) -> int:
        """Number of frames, counted by reading the file's packets (or, if need be, by decoding it once)."""
        return len(self._index[0])

    @property
    def timestamps(self) -> NDArray[np.float64]:
        """Seconds since the first frame."""
        return self._timing[0]

    @property
    def frames_per_second(self) -> float:
        """Frame rate: as given, else the file's average where its time stamps agree, else that of the time stamps."""
        return self._told_rate or self._timing[1]

    @cached_property
    def _timing(self) -> tuple[NDArray[np.float64], float]:
        times, found, notes = clean_timestamps(self._index[0], self.count, self._told_rate or self._agreed_rate())
        for sentence in notes:
            self._note(sentence)
        return times, found

    def _agreed_rate(self) -> float | None:
        """The first rate in the header that the time stamps do not contradict."""
        gaps = np.diff(self._index[0])
        if not len(gaps) or not (gaps > 0).all():
            return next(iter(self._header_rates), None)
        usual = typical_intervals(gaps)
        # Half a percent, and stamps may be rounded to milliseconds.
        allowed = 0.005 * usual.sum() + 2e-3
        return next((rate for rate in self._header_rates if abs(usual.sum() - len(usual) / rate) <= allowed), None)

    @cached_property
    def _listed(self) -> list[tuple[int, float, bool]] | None:
        """Times and key flags of the frames by their packets, where these can be relied on."""
        return self._packet_times() if self._damaged == "refuse" else None

    @cached_property
    def _index(self) -> tuple[NDArray[np.float64], _Ticks | None]:
        """Time of every frame in seconds, and in ticks of the stream where frames can be found by them."""
        times: list[Any] | None = self._listed
        if times is None:
            # Only decoding tells how many frames there are: raw streams, AVI, files that break off.
            times = [(shown.pts, shown.time, shown.key_frame) for shown in self._pictures(0)]
        stamps = np.array([np.nan if time is None else time for _, time, _ in times], np.float64)
        if len({tick for tick, *_ in times if tick is not None}) < len(times):
            return stamps, None
        ticks = np.array([tick for tick, *_ in times], np.int64)
        # FFV1 conceals damage by what it decoded before, and does not report it, so it is never sought in.
        sought = (np.diff(ticks) > 0).all() and self._codec != "ffv1"
        return np.sort(stamps), _Ticks(ticks, np.array([key for *_, key in times])) if sought else None

    def _packet_times(self) -> list[tuple[int, float, bool]] | None:
        """Ticks, seconds and key flag of all frames by the packets alone; None where these may differ from frames."""
        found: list[tuple[int, float, bool]] = []
        packets, end, decoded = 0, 0.0, -(2**63)
        with self._open() as container:
            stream = container.streams.video[0]
            if stream.codec_context.name == "mpeg4" or (
                container.format.name == "avi" and stream.codec_context.has_b_frames
            ):
                # MPEG-4 has packets of frames that are "not coded" and give no picture; AVI keeps the order of decoding
                # only.
                return None
            hides = stream.codec_context.name == "vp8"
            try:
                for packet in container.demux(stream):
                    packets += packet.size > 0
                    # VP8 has packets that are decoded but never shown; a bit of the first byte says so.
                    if not packet.size or packet.is_discard or (hides and not bytes(packet)[0] & 16):
                        continue
                    # Where the clock is set back, the order of the frames is not that of their times.
                    if packet.pts is None or (packet.dts is not None and packet.dts < decoded):
                        return None
                    decoded = decoded if packet.dts is None else packet.dts
                    self._note_damage(packet)
                    found.append((packet.pts, float(packet.pts * stream.time_base), packet.is_keyframe))
                    end = max(end, _end(packet, stream))
            except DECODER_ERRORS as error:
                self._report_break(len(found), error)
            if "mp4" in container.format.name and packets < self._counted:
                self._note(f"the header promises {self._counted} frames, but {packets} are there.")
        head = [shown.pts for shown in islice(self._pictures(0), PROBED)]
        if None in head or not head:
            return None
        # What lies before the first picture (a recording that begins between key frames) cannot be decoded.
        times = sorted(time for time in found if time[0] >= head[0])
        ticks = [tick for tick, *_ in times]
        if ticks[: len(head)] != head or len(set(ticks)) < len(ticks):
            return None
        self._missing([time for _, time, _ in times], end)
        return times

    def _missing(self, stamps: list[float], end: float) -> int:
        """How many frames the header promises behind the last one; by time, as dropped frames are no damage."""
        if self._promised_seconds is None or not stamps:
            return 0
        gaps = np.diff(np.unique(stamps))
        interval = float(typical_intervals(gaps).mean()) if len(gaps) else 1 / self._header_rate
        zero = 0.0 if 0 <= min(stamps) < LATE_START else min(stamps)
        missing = round((self._promised_seconds + zero - max(end, max(stamps) + interval)) / interval)
        if self._counted:
            missing = min(missing, self._counted - len(stamps))
        if missing > 0:
            self._note(f"the header promises {len(stamps) + missing} frames, but {len(stamps)} are there.")
        return max(missing, 0)

    @contextlib.contextmanager
    def _open(self, strict: bool = False) -> Iterator[Any]:
        """The file opened by FFmpeg; a `strict` decoder ends at what another one conceals."""

        def refuse(url: str, flags: int, options: dict[str, str]) -> Any:
            raise MediaError(f"{self.path} is a list that points to {url}; give the video file itself.")

        limit = {"max_pixels": str(FRAME_PIXELS)}
        # FFmpeg gets bytes, never a path: it would take "rec:1.mp4" for a protocol, and opens what a playlist names.
        with contextlib.ExitStack() as stack:
            try:
                handle = stack.enter_context(self.path.open("rb", buffering=0))
                handle.name = f"video{self.path.suffix}"
                sealed = {"protocol_whitelist": "none"}
                opened = av.open(handle, options=limit, container_options=sealed, io_open=refuse, buffer_size=BUFFER)
                container = stack.enter_context(opened)
            except MediaError:
                raise
            except (OSError, EOFError, ValueError, av.error.FFmpegError) as error:
                raise MediaError(
                    f"{self.path} cannot be opened as a video ({_reason(error)}); it is no video or was cut short, so "
                    "copy or record it again."
                ) from error
            if not container.streams.video:
                raise MediaError(f"{self.path} holds no picture track; give a video file with pictures.")
            stream = container.streams.video[0]
            decoder = stream.codec_context
            if decoder is None:
                raise MediaError(f"the pictures of {self.path} have a format that FFmpeg cannot decode; convert it.")
            # What several threads make of a damaged file changes from pass to pass.
            decoder.thread_count = 1
            decoder.options = {**limit, "err_detect": "explode"} if strict else limit
            yield container

    def _checked_shape(self, stream: Any) -> Fraction:
        """Width of a pixel in its heights; checks on the way that the pictures are not too large."""
        shape = Fraction(stream.sample_aspect_ratio or 1)
        if not PIXEL_SHAPES[0] <= shape <= PIXEL_SHAPES[1]:
            self._note(
                f"the header says that pixels are {float(shape):.3g} times as wide as high; they are taken as square."
            )
            shape = Fraction(1)
        height, width = stream.codec_context.height, stream.codec_context.width
        if height * width * max(shape, 1) > FRAME_PIXELS:
            raise MediaError(
                f"the frames of {self.path} have {height}x{width} pixels, but at most {FRAME_PIXELS:,} are read; make "
                "them smaller."
            )
        return shape

    def _shown(self, picture: Any) -> Frame:
        """A decoded picture as a viewer shows it: with square pixels, and turned as the recording says."""
        # FFmpeg knows the range of all depths below 16 bits.
        deep = max(part.bits for part in picture.format.components) == 16
        width = max(1, round(picture.width * self._pixel_shape))
        name = f"a frame of {self.name}"
        try:
            pixels = picture.to_ndarray(format="rgb48le" if deep else "rgb24", width=width)
        except (OSError, ValueError, av.error.FFmpegError) as error:
            raise MediaError(f"{name} cannot be shown as colours ({error}); save the recording anew.") from error
        frame = self._rgb(pixels, name) if deep else as_rgb(pixels, name)
        # The flag counts degrees counter-clockwise, as numpy does.
        turns = round(picture.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(frame, turns)) if turns else frame

    def __iter__(self) -> Iterator[Frame]:
        for _, frame in self._decode(0):
            yield frame

    def _decode(self, start: int) -> Iterator[tuple[int, Frame]]:
        """Frames from `start` on, with their numbers."""
        # A seek compares the time stamps itself.
        listed = None if start else self._listed
        count = start
        for count, picture in enumerate(self._pictures(start), start + 1):
            if listed is not None and (count > len(listed) or picture.pts not in (None, listed[count - 1][0])):
                raise self._unlisted(f"another frame {count - 1} comes")
            yield count - 1, self._checked(self._shown(picture), count - 1)
        if listed is not None and count < len(listed):
            raise self._unlisted(f"only {count} can be decoded")

    def _pictures(self, start: int) -> Iterator[Any]:
        """Decoded pictures from number `start` on; fewer, or none, where a seek does not lead to them."""
        number, end = start, 0.0
        stamps: list[float] = []
        with self._open(strict=start > 0) as container:
            stream = container.streams.video[0]
            try:
                for picture in self._sought(container, stream, start) if start else self._decoded(container, stream):
                    if picture.pts is not None:
                        stamps.append(picture.time)
                        end = max(end, _end(picture, stream))
                    yield picture
                    number += 1
            except DECODER_ERRORS as error:
                # After a seek, the caller reads from the start what did not come.
                if not start:
                    self._report_break(number, error)
                return
        if start or len(stamps) < number:
            return
        missing = self._missing(stamps, end)
        # Rounded durations and edit lists may miss a frame or two; a file cut short misses more.
        if missing > max(2, 0.02 * (number + missing)):
            self._report_break(number, None, max(self._counted, number + missing))

    def _decoded(self, container: Any, stream: Any, *, sought: bool = False) -> Iterator[Any]:
        """Pictures from where the container stands; after a seek, those before a key frame may lack what they need."""
        waiting, key = sought, None
        for packet in container.demux(stream):
            if not waiting:
                self._note_damage(packet)
            try:
                pictures = packet.decode()
            except DECODER_ERRORS:
                if not sought or (key is not None and (packet.pts is None or packet.pts >= key)):
                    raise
                continue
            if key is None and packet.is_keyframe:
                key = packet.pts
            for picture in pictures:
                waiting = waiting and not picture.key_frame
                if not waiting:
                    self._note_damage(picture)
                yield picture

    def _note_damage(self, part: Any) -> None:
        if part.is_corrupt and part.pts is not None and not self._damage_noted:
            self._damage_noted = True
            self._note(f"the file is damaged at {float(part.pts * part.time_base):.4g} s, as its decoder reports.")

    def _sought(self, container: Any, stream: Any, start: int) -> Iterator[Any]:
        """Pictures from number `start` on, found by seeking; ends where they may not be those of a pass."""
        index = cast("_Ticks", self._index[1])
        ticks, back = index.ticks, 0
        wanted = int(ticks[start])
        # Many containers lead to a place between key frames, or behind the wanted one: then further back.
        while wanted - back > ticks[0]:
            try:
                container.seek(wanted - back, stream=stream)
                pictures = self._decoded(container, stream, sought=True)
                found = index.reached(pictures, start)
            except DECODER_ERRORS:
                found = None
            if self._damage_noted:
                return
            if found is not None:
                yield found
                for tick, picture in zip(ticks[start + 1 :], pictures, strict=False):
                    if picture.pts != tick or self._damage_noted:
                        return
                    yield picture
                return
            back = 2 * back + max(1, round(1 / stream.time_base))

    def _frame(self, index: int) -> Frame:
        # Each caller gets an array of its own, as they may draw into it.
        if index in self._kept:
            return self._kept[index].copy()
        # Without time stamps there is nothing to seek by; a damaged frame may be made from any of those before it.
        sought = self._index[1] is not None and not self._damage_noted
        ahead = index - self._next_index
        if self._reader is None or ahead < 0 or (sought and ahead > READ_ON):
            start = index if sought and index > READ_ON else 0
            self._reader, self._next_index = self._decode(start), start
        # Where no seek leads to the frame, all those before it are read.
        for _ in range(2):
            for number, frame in self._reader:
                self._next_index = number + 1
                self._kept[number] = frame
                while len(self._kept) > KEPT_FRAMES:
                    del self._kept[next(iter(self._kept))]
                if number == index:
                    return frame.copy()
            self._reader, self._next_index = self._decode(0), 0
        self._reader = None
        raise MediaError(
            f"frame {index} of {self.name} cannot be decoded although the file lists {self.count} frames; copy the "
            "file again."
        )

    def _report_break(self, number: int, error: Exception | None, promised: int = 0) -> None:
        if self._damaged != "refuse":
            self._note(f"the file breaks off after {number} frames; what lies behind them is missing.")
            return
        promised = promised or self._counted or round((self._promised_seconds or 0) * self._header_rate)
        of = f" of {promised}" if promised else ""
        why = "" if error is None else f" ({_reason(error)})"
        raise MediaError(
            f"the video {self.path} breaks off after {number}{of} frames{why}: it was cut short or damaged; copy it "
            "again, or read what is there with damaged='keep'."
        ) from error

    def _unlisted(self, what: str) -> MediaError:
        return MediaError(
            f"the video {self.path} lists {self.count} frames, but {what}: it is damaged; copy it again, or read what "
            "can be decoded with damaged='keep'."
        )


def _end(part: Any, stream: Any) -> float:
    """Seconds at which a packet or picture ends, or begins where that is not said."""
    return float((part.pts + (part.duration or 0)) * stream.time_base)


def _promised_seconds(container: Any, stream: Any) -> float | None:
    """How long the pictures last, as the header says."""
    if stream.duration:
        told = float(stream.duration * stream.time_base)
        # FFmpeg shortens the duration of an AVI that was cut, but not its number of frames (dropped ones included).
        return max(told, float(stream.frames / stream.average_rate)) if stream.average_rate else told
    if container.duration and len(container.streams) == 1:
        return float(container.duration / 1e6)
    return None


def _reason(error: Exception) -> str:
    """What FFmpeg said, without its numbers and the path, which the sentence names already."""
    return str(getattr(error, "strerror", None) or error).split(";")[0]
