"""`test_video.py` on live streams: HTTP, named pipes, stdin, lost connections, a slow model, Ctrl-C."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise

import numpy as np
import pytest
from forked import REPOSITORY
from helpers import ON_CPU, assert_one_line_error, call, files_limited_to, running
from video_files import write_video

from frames.sources import open_video
from frames.stream import LiveStream, is_live
from inference.clips import ClipFormat
from inference.live import Recorder, live_clips
from transforms import evaluation_transform
from utils.cli import UserError

pytestmark = pytest.mark.slow

FORMAT = ClipFormat(8, 1, evaluation_transform(32))


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Three seconds. Read only: it is shared."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    write_video(path, 36)
    return path


@contextmanager
def served(content, share=1.0):
    """Serve bytes as a file over HTTP, which close after a share of it; yield the URL and the requests."""
    requests = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: int(share * len(content))])

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/film", requests
    finally:
        server.shutdown()
        server.server_close()


def test_sources(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "a.mp4").touch()
    for source in ("-", "rtsp://camera/1", "http://host/a.mp4", "/dev/video9", str(tmp_path / "pipe")):
        assert is_live(source)
    for source in (str(tmp_path / "a.mp4"), str(tmp_path), str(tmp_path / "missing"), "clip.mp4"):
        assert not is_live(source)


def test_stream_over_http_has_the_answers_of_the_file(weights, film, tmp_path):
    options = ("--window", 1, "--stride", 1, "--weights", weights)
    with served(film.read_bytes()) as (url, _):
        began = time.monotonic()
        files = ("--json", tmp_path / "live.json", "--rendered_output", tmp_path / "live.mp4")
        process = call("test_video.py", url, *options, *files)
        assert time.monotonic() - began > 2.5  # a recording is played at its own speed
    assert process.returncode == 0, process.stderr
    lines = re.findall(r"[\d.]+-[\d.]+ s  [\d.]+ -> .*\(\d+ ms\)", process.stdout)
    (live,) = json.loads((tmp_path / "live.json").read_text())["videos"]
    assert len(lines) == len(live["windows"]) > 0
    assert live["num_frames"] == 36
    call("test_video.py", film, *options, "--json", tmp_path / "file.json")
    (recorded,) = json.loads((tmp_path / "file.json").read_text())["videos"]
    by_start = {window["start"]: window for window in recorded["windows"]}
    for window in live["windows"]:  # a loaded machine may skip some
        same = by_start[window["start"]]
        assert window["frames"] == same["frames"]
        probabilities = [[best["probability"] for best in one["top"]] for one in (window, same)]
        np.testing.assert_allclose(*probabilities, atol=1e-5)

    # The recording has every frame at its time, and the caption of the newest answer.
    recorded = open_video(tmp_path / "live.mp4")
    np.testing.assert_allclose(recorded.times, np.arange(36) / 12, atol=2e-3)
    has_caption = [(np.asarray(recorded.read([n])[n])[-40:] > 240).all(axis=2).any() for n in (2, 35)]
    assert has_caption == [False, True]


def test_slow_model_skips_windows_and_counts_frames(film):
    with served(film.read_bytes()) as (url, _):
        stream = LiveStream(url, FORMAT.crop, 0.5)
        clips = []
        for clip, _ in live_clips(stream, FORMAT, 0.25, 0.25):
            clips.append(clip.window)
            time.sleep(0.9)
    assert len(clips) < 8  # of 12
    assert np.diff([window.start for window in clips])[:2].min() >= 0.5
    assert stream.num_dropped > 9
    assert stream.num_frames == 36


def test_named_pipe(weights, film, tmp_path):
    pipe, source = tmp_path / "pipe", tmp_path / "film.ts"
    write_video(source, 36)
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(source.read_bytes()), daemon=True)
    writer.start()
    process = call("test_video.py", pipe, "--window", 1, "--weights", weights, "--csv", tmp_path / "a.csv")
    writer.join(10)
    assert process.returncode == 0, process.stderr
    assert "36 frames" in process.stdout.splitlines()[-2]
    assert (tmp_path / "a.csv").read_text().count("\n") > 1


def test_stdin_and_ctrl_c(weights, film, tmp_path):
    source = tmp_path / "film.ts"
    write_video(source, 240)
    command = [sys.executable, REPOSITORY / "test_video.py", "-", "--weights", weights, "--window", 1]
    env = os.environ | ON_CPU
    with running(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as process:
        process.stdin.buffer.write(source.read_bytes())  # and more may follow
        process.stdin.buffer.flush()
        while " ms)" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        *_, summary = process.stdout.read().splitlines()
        assert process.wait(10) == 0
    assert re.fullmatch(r"\d+ answers?, \d+ frames in [\d.]+ s, \d+ dropped", summary)


def test_lost_stream_is_one_line(weights, film):
    with served(film.read_bytes(), share=0.7) as (url, _):
        process = call("test_video.py", url, "--window", 1, "--weights", weights)
    assert_one_line_error(process, url, "lost")
    assert " dropped" in process.stdout.splitlines()[-1]


def test_reconnect_continues_numbers_and_times(weights, film, tmp_path):
    command = [sys.executable, REPOSITORY / "test_video.py", "--weights", weights, "--window", 0.5]
    command += ["--threshold", 0]
    with served(film.read_bytes(), share=0.7) as (url, requests):
        command += ["--reconnect", "--camera", url, "--json", tmp_path / "a.json"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with running(command, env=os.environ | ON_CPU, **pipes) as process:
            assert "lost" in process.stderr.readline()
            assert "lost" in process.stderr.readline()
            process.send_signal(signal.SIGINT)
            process.communicate()
            assert process.returncode == 0
    assert len(requests) >= 2
    (video,) = json.loads((tmp_path / "a.json").read_text())["videos"]
    times = [time for window in video["windows"] for time in (window["start"], *window["times"])]
    assert max(times) > 3.5  # two connections, with two seconds between them
    frames = [window["frames"][0] for window in video["windows"]]
    assert frames == sorted(frames)
    gaps = [(a["end"], b["start"]) for a, b in pairwise(video["windows"]) if a["end"] < b["start"]]
    assert gaps
    assert not any(part["start"] < end < part["end"] for part in video["segments"] for end, _ in gaps)


def test_source_that_cannot_be_opened(weights):
    assert_one_line_error(call("test_video.py", "--weights", weights, "--camera", 9), "/dev/video9")
    with served(b"not a video" * 1000) as (url, _), pytest.raises(UserError, match="cannot be opened"):
        LiveStream(url, FORMAT.crop, 1)


def test_full_disk_ends_a_recording(weights, film, tmp_path):
    options = ("--window", 1, "--weights", weights, "--reconnect", "--rendered_output", tmp_path / "live.mp4")
    with served(film.read_bytes()) as (url, _), files_limited_to(1000):
        process = call("test_video.py", url, *options)
    assert_one_line_error(process, f"--rendered_output {tmp_path / 'live.mp4'}")
    assert not list(tmp_path.iterdir())


def test_failed_recording_keeps_the_answers(weights, film, tmp_path, monkeypatch):
    answers = []

    def show(self, answer):
        answers.append(answer)
        if len(answers) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Recorder, "show", show)
    options = ("--window", 1, "--weights", weights, "--rendered_output", tmp_path / "a.mp4")
    with served(film.read_bytes()) as (url, _):
        process = call("test_video.py", url, *options, "--json", tmp_path / "a.json")
    assert_one_line_error(process, f"--rendered_output {tmp_path / 'a.mp4'}")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    (video,) = json.loads((tmp_path / "a.json").read_text())["videos"]
    assert len(video["windows"]) == 2
