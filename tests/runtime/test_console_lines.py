"""What the log of a job is told of a long command."""

from kitsseg.runtime.console import LINE_EVERY_S, LogLines, console


def test_a_line_a_minute_with_rate_and_time_left():
    now = [0.0]
    with console.capture() as captured:
        lines = LogLines("steps", clock=lambda: now[0])
        for step in range(1, 301):  # two steps a second
            now[0] = 0.5 * step
            lines(f"train, epoch {1 + step // 100} of 3, loss 0.5", step, 1200)
    said = captured.get().splitlines()
    assert len(said) == int(150 // LINE_EVERY_S)
    # the first step was done at 0.5 s: 119 of them in 59.5 s, 1080 are left
    assert said[0] == "train, epoch 2 of 3, loss 0.5: 120 of 1200 steps, 2 steps a second, about 0:09:00 left"


def test_slow_steps_are_told_in_seconds_each_and_another_work_begins_anew():
    now = [0.0]
    with console.capture() as captured:
        lines = LogLines(clock=lambda: now[0])
        for done in (0, 1, 2):
            lines("predict [a]", done, 10)
            now[0] += 100
        lines("next", 0, 5)
    said = captured.get().splitlines()
    assert said[0] == "predict [a]: 1 of 10, 100 s each, about 0:15:00 left"
    assert said[-1] == "next: 0 of 5"
