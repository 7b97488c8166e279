"""Videos of every kind that a folder may hold, whole and broken, through every decoder that is installed."""

from __future__ import annotations

import functools
import http.server
import struct
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest

from datamodules.decoding import UnreadableFileError
from datamodules.video_decoding import (
    DECODERS,
    FOLDER_RATE,
    Span,
    UnreadableVideoError,
    fastest_decoder,
    installed_decoders,
    iterate_frames,
    read_frames,
)
from tests.videos import frame_number, numbered_frame, numbered_frames, numbers, rotate_header, write_video
from tests.videos import write_with_pyav as write_other
from vision.errors import InputError

COUNT = 40
LATE = 420  # frames of videos that are long enough for seeks
OPEN = "open-gop=1:keyint=50:min-keyint=50:bframes=3:scenecut=0"

every_decoder = pytest.mark.parametrize("decoder", installed_decoders())


@pytest.fixture(scope="module")
def uneven() -> list[int]:
    """Milliseconds at which the frames of a variable frame rate are shown."""
    return np.cumsum(np.random.default_rng(0).integers(20, 180, LATE)).tolist()


@pytest.fixture(scope="module")
def videos(tmp_path_factory, uneven) -> dict[str, Path]:
    """Videos by name, of 40 frames or of 420, mostly 10 a second."""
    folder = tmp_path_factory.mktemp("videos")
    frames, many = numbered_frames(COUNT), numbered_frames(LATE)
    return {
        "mpeg4": write_video(folder / "mpeg4.mp4", frames),
        "mjpeg": write_video(folder / "mjpeg.avi", frames, fourcc="MJPG"),
        "vp8": write_video(folder / "vp8.webm", frames, fourcc="VP80"),
        "h264": write_other(folder / "h264.mp4", frames),
        "grey": write_other(folder / "grey.mkv", frames, "ffv1", pixels="gray"),
        "odd": write_other(folder / "odd.mkv", numbered_frames(COUNT, 47, 71), "ffv1", pixels="yuv444p"),
        "long mpeg4": write_video(folder / "long.mp4", many),
        "long h264": write_other(folder / "open.mp4", many, **{"x264-params": OPEN}),
        "uneven": write_other(folder / "uneven.mkv", many, times=uneven, g="60"),
        "uneven mp4": write_other(folder / "uneven.mp4", many, times=uneven, g="60"),
        "one": write_video(folder / "one.mp4", frames[:1]),
    }


def all_of(count: int) -> np.ndarray:
    return np.arange(count)


# ------------------------------------------------------------------------------------------------- the right frames
@every_decoder
@pytest.mark.parametrize("name", ["mpeg4", "mjpeg", "vp8", "h264", "grey", "odd"])
def test_frames_come_in_the_order_of_the_indices(videos, name, decoder):
    seen = []

    def choose(count):
        seen.append(count)
        return np.array([7, 3, count - 1, 3, 0])

    frames = read_frames(videos[name], choose, decoder=decoder)
    assert seen == [COUNT]
    assert frames.dtype == np.uint8
    assert frames.shape == ((5, 47, 71, 3) if name == "odd" else (5, 48, 72, 3))
    assert numbers(frames) == [7, 3, COUNT - 1, 3, 0]
    assert frames.flags.c_contiguous


@every_decoder
def test_colours_are_red_green_blue(videos, decoder):
    frame = read_frames(videos["mpeg4"], lambda _: np.array([0]), decoder=decoder)[0]
    assert np.abs(frame.astype(int) - numbered_frame(0)).mean() < 12
    grey = read_frames(videos["grey"], lambda _: np.array([0]), decoder=decoder)[0]
    assert (grey[..., 0] == grey[..., 1]).all()
    assert (grey[..., 0] == grey[..., 2]).all()


@pytest.mark.parametrize("name", ["mpeg4", "mjpeg", "vp8", "h264", "grey", "odd", "long h264", "uneven"])
def test_every_decoder_gives_the_same_pixels(videos, name):
    read = [read_frames(videos[name], all_of, decoder=decoder) for decoder in installed_decoders()]
    assert all(np.array_equal(frames, read[0]) for frames in read[1:])


@every_decoder
@pytest.mark.parametrize(("degrees", "quarters"), [(90, -1), (180, 2), (270, 1)])
def test_what_was_filmed_upright_is_read_upright(videos, tmp_path, decoder, degrees, quarters):
    path = tmp_path / "turned.mp4"
    path.write_bytes(videos["mpeg4"].read_bytes())
    rotate_header(path, degrees, 48, 72)
    stored = read_frames(videos["mpeg4"], all_of, decoder=decoder)
    turned = read_frames(path, all_of, decoder=decoder)
    assert turned.flags.c_contiguous
    assert np.array_equal(turned, np.rot90(stored, quarters, axes=(1, 2)))


@every_decoder
def test_a_video_of_one_frame(videos, decoder):
    assert numbers(read_frames(videos["one"], lambda count: np.arange(4) % count, decoder=decoder)) == [0] * 4


# ------------------------------------------------------------------------------------------------------------ spans
@every_decoder
def test_a_span_in_seconds_has_the_frames_shown_in_it(videos, decoder):
    read = functools.partial(read_frames, videos["mpeg4"], all_of, decoder=decoder)
    # Ten frames a second: 1.2 s is a frame's own time, 1.25 s is between two.
    assert numbers(read(span=Span(1.2, 2.0, "seconds"))) == list(range(12, 20))
    assert numbers(read(span=Span(1.25, 2.05, "seconds"))) == list(range(13, 21))
    assert numbers(read(span=Span(3.5, None, "seconds"))) == list(range(35, COUNT))
    assert numbers(read(span=Span(3.8, 99.0, "seconds"))) == [38, 39]


@every_decoder
def test_a_span_in_frames_counts_from_zero(videos, decoder):
    read = functools.partial(read_frames, videos["vp8"], all_of, decoder=decoder)
    assert numbers(read(span=Span(5, 9, "frames"))) == [5, 6, 7, 8]
    assert numbers(read(span=Span(36, None, "frames"))) == [36, 37, 38, 39]
    assert numbers(read(span=Span(38, 99, "frames"))) == [38, 39]


@every_decoder
@pytest.mark.parametrize("name", ["long mpeg4", "long h264"])
@pytest.mark.parametrize("start", [31.0, 34.95, 35.0, 40.07])
def test_seeking_gives_the_frames_of_a_reading_from_the_beginning(videos, name, start, decoder):
    whole = read_frames(videos[name], all_of)
    frames = read_frames(videos[name], all_of, Span(start, start + 1.5, "seconds"), decoder)
    first, last = np.ceil([start * 10 - 1e-6, start * 10 + 15 - 1e-6]).astype(int)
    assert np.array_equal(frames, whole[first:last])


@every_decoder
@pytest.mark.parametrize("name", ["uneven", "uneven mp4"])
@pytest.mark.parametrize("start", [2.0, 33.0, 38.5])
def test_spans_of_a_variable_frame_rate_go_by_the_timestamps(videos, uneven, name, start, decoder):
    shown = (np.array(uneven) - uneven[0]) / 1000
    expected = np.flatnonzero((shown >= start) & (shown < start + 2))
    counts = []

    def choose(count):
        counts.append(count)
        return np.arange(count)

    assert numbers(read_frames(videos[name], choose, Span(start, start + 2, "seconds"), decoder)) == expected.tolist()
    assert counts[-1] == len(expected)


@every_decoder
def test_a_span_without_frames_is_named(videos, decoder):
    for span, word in (
        (Span(50.0, 60.0, "seconds"), "seconds 50 to 60"),
        (Span(2.01, 2.02, "seconds"), "seconds 2.01 to 2.02"),
        (Span(400, None, "frames"), "frames 400 to the end"),
    ):
        with pytest.raises(UnreadableVideoError, match=f"no frame in {word}"):
            read_frames(videos["mpeg4"], all_of, span, decoder)


# ------------------------------------------------------------------------------------------- counts that are not so
def _say(path: Path, count: int) -> None:
    """Writes a number of frames into the headers of an AVI."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(b"avih") + 8 + 16, count)
    struct.pack_into("<I", data, data.index(b"strh") + 8 + 32, count)
    path.write_bytes(data)


@every_decoder
@pytest.mark.parametrize("said", [0, 44, 2**31 - 1])
def test_a_count_that_lies_is_found_out(videos, tmp_path, said, decoder):
    path = tmp_path / "lies.avi"
    path.write_bytes(videos["mjpeg"].read_bytes())
    _say(path, said)
    frames = read_frames(path, lambda count: np.array([0, count // 2, count - 1]), decoder=decoder)
    assert numbers(frames) == [0, COUNT // 2, COUNT - 1]


@every_decoder
def test_a_half_written_file_gives_the_frames_that_it_has(videos, tmp_path, decoder):
    data = videos["vp8"].read_bytes()
    path = tmp_path / "half.webm"
    path.write_bytes(data[: len(data) // 2])
    counts = []

    def choose(count):
        counts.append(count)
        return np.linspace(0, count - 1, 6).astype(int)

    if decoder == "torchcodec":  # it counts before it promises anything
        frames = read_frames(path, choose, decoder=decoder)
    else:
        with pytest.warns(UserWarning, match=r"half\.webm: it ends after \d+ of 40 frames"):
            frames = read_frames(path, choose, decoder=decoder)
        assert counts[0] == COUNT
    assert 10 < counts[-1] < 30
    assert numbers(frames) == np.linspace(0, counts[-1] - 1, 6).astype(int).tolist()


# ----------------------------------------------------------------------------------------------------- broken files
def broken_files(folder: Path, videos: dict[str, Path]) -> dict[str, str]:
    """Broken videos by file name, and a word of what is said of each."""
    whole = videos["mpeg4"].read_bytes()
    data = videos["vp8"].read_bytes()
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("Dear diary, today I was named .mp4.\n" * 50)
    (folder / "cut.mp4").write_bytes(whole[: whole.index(b"moov") - 20])
    (folder / "nothing.webm").write_bytes(data[: data.index(b"\x1f\x43\xb6\x75") + 12])
    (folder / "other codec.mp4").write_bytes(videos["h264"].read_bytes().replace(b"avc1", b"zzzz"))
    (folder / "unplayed.avi").write_bytes(_without_frames(videos["mjpeg"].read_bytes()))
    return {
        "empty.mp4": "empty file",
        "text.mp4": "not a video of a known format",
        "cut.mp4": "cut off before its index",
        "nothing.webm": "no frame can be decoded|damaged",
        "other codec.mp4": "a codec that .* cannot decode",
        "unplayed.avi": "no frame can be decoded|damaged",
    }


def _without_frames(avi: bytes) -> bytes:
    return avi[: avi.index(b"movi") + 4]


def _sound_only(path: Path) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac" if path.suffix == ".mp4" else "pcm_s16le", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.int16), format="s16", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    return path


@every_decoder
def test_broken_files_are_named_with_the_reason(videos, tmp_path, decoder, capfd):
    for name, word in broken_files(tmp_path, videos).items():
        with pytest.raises(UnreadableVideoError, match=word) as caught:
            read_frames(tmp_path / name, all_of, decoder=decoder)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(UnreadableVideoError, match="No such file"):
        read_frames(tmp_path / "missing.mp4", all_of, decoder=decoder)
    if decoder != "torchcodec":  # whose FFmpeg cannot be told to be silent
        assert capfd.readouterr().err == ""


@every_decoder
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_a_file_of_sound_alone_has_no_video_stream(tmp_path, suffix, decoder):
    with pytest.raises(UnreadableVideoError, match="no video stream"):
        read_frames(_sound_only(tmp_path / f"sound.{suffix}"), all_of, decoder=decoder)


@every_decoder
def test_damage_in_the_middle_costs_only_the_frames_that_it_hits(videos, tmp_path, decoder):
    data = bytearray(videos["mjpeg"].read_bytes())
    place = data.index(b"00dc", len(data) // 2)
    data[place + 8 : place + 200] = bytes(192)
    path = tmp_path / "damaged.avi"
    path.write_bytes(data)
    try:
        frames = read_frames(path, all_of, decoder=decoder)
    except UnreadableVideoError:
        assert decoder == "torchcodec"  # which gives up at the first
    else:
        assert len(frames) >= COUNT - 1
        assert frame_number(frames[-1]) == COUNT - 1


def test_unreadable_videos_are_unreadable_files():
    assert issubclass(UnreadableVideoError, UnreadableFileError)
    assert UnreadableVideoError("a.mp4", "empty").reason == "empty"


@every_decoder
def test_the_limit_of_pixels_is_the_callers(videos, decoder):
    assert len(read_frames(videos["mpeg4"], all_of, decoder=decoder, max_pixels=48 * 72)) == COUNT
    with pytest.raises(UnreadableVideoError, match="72x48 is more than 3,455 pixels"):
        read_frames(videos["mpeg4"], all_of, decoder=decoder, max_pixels=48 * 72 - 1)


def test_decoders_that_are_not_there(videos, monkeypatch):
    with pytest.raises(InputError, match=r"no decoder 'openvc' \(did you mean 'opencv'\?\)"):
        read_frames(videos["mpeg4"], all_of, decoder="openvc")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"pyav is not installed: pip install 'frugal-vision\[video\]'"):
        read_frames(videos["mpeg4"], all_of, decoder="pyav")
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(InputError, match="torchcodec is not installed"):
        read_frames(videos["mpeg4"], all_of, decoder="torchcodec")


def test_the_fastest_decoder_is_an_installed_one(videos, tmp_path):
    assert set(installed_decoders()) <= set(DECODERS)
    assert fastest_decoder([videos["mpeg4"], tmp_path / "missing.mp4"]) in installed_decoders()
    assert fastest_decoder([tmp_path / "missing.mp4"]) == "opencv"


# ----------------------------------------------------------------------------------------------- folders of frames
@pytest.fixture
def frame_folder(tmp_path) -> Path:
    """Twelve frames that sort naturally, not alphabetically, and what does not belong to them."""
    folder = tmp_path / "clip"
    folder.mkdir()
    for number in range(12):
        cv2.imwrite(str(folder / f"img{number}.png"), cv2.cvtColor(numbered_frame(number), cv2.COLOR_RGB2BGR))
    (folder / "notes.txt").write_text("shot in the rain")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def test_a_folder_of_frames_is_a_video(frame_folder):
    frames = read_frames(frame_folder, lambda count: np.array([count - 1, 2, 2]))
    assert np.array_equal(frames, np.stack([numbered_frame(11), numbered_frame(2), numbered_frame(2)]))
    assert numbers(read_frames(frame_folder, all_of, Span(3, 6, "frames"))) == [3, 4, 5]
    assert numbers(read_frames(frame_folder, all_of, Span(10, None, "frames"))) == [10, 11]


def test_what_is_wrong_with_a_folder_of_frames(frame_folder, tmp_path):
    with pytest.raises(InputError, match="no timestamps: give the span in frames"):
        read_frames(frame_folder, all_of, Span(0.0, 1.0, "seconds"))
    with pytest.raises(UnreadableVideoError, match="no frame in frames 12 to 20"):
        read_frames(frame_folder, all_of, Span(12, 20, "frames"))
    with pytest.raises(UnreadableVideoError, match=r"img0\.png: 72x48 is more than 100 pixels"):
        read_frames(frame_folder, lambda _: np.array([0]), max_pixels=100)
    (frame_folder / "img5.png").write_bytes(b"")
    with pytest.raises(UnreadableVideoError, match=r"img5\.png: empty file") as caught:
        read_frames(frame_folder, all_of)
    assert str(caught.value).startswith(str(frame_folder))
    cv2.imwrite(str(frame_folder / "img5.png"), np.zeros((10, 20, 3), np.uint8))
    with pytest.raises(UnreadableVideoError, match=r"several sizes \(20x10, 72x48\)"):
        read_frames(frame_folder, all_of)
    (tmp_path / "bare").mkdir()
    with pytest.raises(UnreadableVideoError, match="a folder without frames"):
        read_frames(tmp_path / "bare", all_of)


# -------------------------------------------------------------------------------------------------- frame by frame
@every_decoder
def test_a_file_frame_by_frame(videos, decoder):
    seconds, frames = zip(*iterate_frames(videos["h264"], decoder), strict=True)
    assert seconds == pytest.approx([0.1 * number for number in range(COUNT)])
    assert np.array_equal(frames, read_frames(videos["h264"], all_of, decoder=decoder))


def test_a_folder_frame_by_frame(frame_folder):
    seconds, frames = zip(*iterate_frames(frame_folder), strict=True)
    assert numbers(frames) == list(range(12))
    assert seconds == pytest.approx([number / FOLDER_RATE for number in range(12)])


def test_a_stream_over_the_network_frame_by_frame(videos):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=videos["vp8"].parent)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert numbers(frame for _, frame in iterate_frames(f"{address}/vp8.webm")) == list(range(COUNT))
        with pytest.raises(UnreadableVideoError, match="no stream can be opened"):
            next(iterate_frames(f"{address}/missing.webm"))
        server.shutdown()


def test_sources_that_cannot_be_opened(tmp_path, videos, capfd):
    with pytest.raises(UnreadableVideoError, match="No such file"):
        next(iterate_frames(tmp_path / "missing.mp4"))
    with pytest.raises(InputError, match="camera 97: it cannot be opened"):
        next(iterate_frames(97))
    (tmp_path / "none.avi").write_bytes(_without_frames(videos["mjpeg"].read_bytes()))
    with pytest.raises(UnreadableVideoError, match="no frame can be decoded"):
        next(iterate_frames(tmp_path / "none.avi"))
    assert capfd.readouterr().err == ""
