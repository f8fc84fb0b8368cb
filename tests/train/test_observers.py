"""What a run says on the terminal."""

import pytest

from largebatch.train import observers


def test_the_time_left_follows_the_pace_of_the_stage(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [0.0]
    monkeypatch.setattr(observers.time, "monotonic", lambda: clock[0])
    display = observers.Display(seconds_between_lines=0.0)
    display.start(0, 30)
    for stage, steps, seconds in (("short", range(1, 11), 1), ("long", range(11, 16), 10)):
        display.record("stage", {"stage": stage, "step": steps[0] - 1, "moments": "new"})
        for step in steps:
            clock[0] += seconds
            display.record("train", {"step": step, "stage": stage, "loss": 1.0, "lr": 0.1, "samples_per_second": 8.0})
    said = capsys.readouterr().err.splitlines()
    assert said[10] == "step 10/30  stage short  loss 1.0000  lr 0.1  8 samples/s  20 s left"
    assert said[-1] == "step 15/30  stage long  loss 1.0000  lr 0.1  8 samples/s  150 s left", "not 60 of 15 steps"
