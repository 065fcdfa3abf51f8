"""Progress where nobody watches: plain lines, few of them, with an estimated end."""

from iar_study.running import display
from iar_study.running.display import Display


def test_plain_lines_tell_what_how_far_and_when(capsys, monkeypatch):
    clock = iter([0.0, 5.0, 20.0, 40.0])
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    with Display() as shown:
        shown.update("training", 0, 100)
        shown.update("training", 10, 100)  # too soon for another line
        shown.update("training", 50, 100, "loss 1.2")
        shown.update("training", 100, 100)
    assert capsys.readouterr().err.splitlines() == [
        "training: 0/100",
        "training: 50/100  about 20 s left  loss 1.2",
        "training: 100/100  done in 40 s",
    ]


def test_a_task_of_one_step_is_told_when_it_is_done(capsys):
    with Display() as shown:
        shown.update("encoding", 0, 1)
        shown.update("encoding", 1, 1)
    assert capsys.readouterr().err == "encoding  done\n"


def test_lines_are_shown_as_they_are(capsys):
    with Display() as shown:
        shown.say("[red]brackets[/red] and " + "long " * 40)
    assert capsys.readouterr().err.strip() == ("[red]brackets[/red] and " + "long " * 40).strip()


def test_another_task_of_the_same_name_begins_anew(capsys, monkeypatch):
    """As when a study trains several tokenizers."""
    clock = iter([0.0, 40.0, 100.0, 120.0, 140.0])
    monkeypatch.setattr(display.time, "monotonic", lambda: next(clock))
    with Display() as shown:
        for done in (0, 100, 0, 50, 100):
            shown.update("training", done, 100)
    assert capsys.readouterr().err.splitlines() == [
        "training: 0/100",
        "training: 100/100  done in 40 s",
        "training: 0/100",
        "training: 50/100  about 20 s left",
        "training: 100/100  done in 40 s",
    ]


def test_so_does_its_bar(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as of a terminal
    with Display() as shown:
        for done in (0, 100):
            shown.update("training", done, 100)
        (bar,) = shown._bars.tasks
        first = bar.start_time
        assert bar.finished
        shown.update("training", 20, 100)
        assert (bar.finished, bar.completed) == (False, 20)
        assert bar.start_time > first
