"""Progress: a bar at a terminal, nothing on a pipe, nothing ever on stdout."""

import io
import re
import subprocess
import sys

import pytest

from deploytool.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def at_terminal(monkeypatch) -> Terminal:
    """Make stderr a wide terminal; to be called in the test itself, as pytest changes sys.stderr before it."""
    fake = Terminal()
    monkeypatch.setattr(sys, "stderr", fake)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    return fake


def shown(terminal: Terminal) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())


def last_line(terminal: Terminal) -> str:
    return [line for line in re.split(r"[\r\n]+", shown(terminal)) if line.strip()][-1]


def test_a_pipe_stays_silent(capsys) -> None:
    with progress_bar("training", 3) as bar:
        for _ in range(3):
            bar.advance("loss 0.5")
    assert capsys.readouterr() == ("", "")


def test_a_pipe_does_not_even_load_rich() -> None:
    code = "import sys\nfrom deploytool.progress import progress_bar\n"
    code += "with progress_bar('x', 1) as bar: bar.advance()\nprint('rich' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_a_terminal_sees_title_count_note_and_eta(monkeypatch) -> None:
    terminal, stdout = at_terminal(monkeypatch), io.StringIO()
    monkeypatch.setattr(sys, "stdout", stdout)
    with progress_bar("training", 4) as bar:
        for step in range(3):
            bar.advance(f"loss {step}")
    line = last_line(terminal)
    for words in ("training", "3/4", "ETA", "loss 2"):
        assert words in line
    assert stdout.getvalue() == ""


def test_a_resumed_bar_starts_at_what_is_done(monkeypatch) -> None:
    terminal = at_terminal(monkeypatch)
    with progress_bar("training", 10, done=7) as bar:
        bar.advance()
    assert "8/10" in last_line(terminal) and "1/10" not in shown(terminal)


@pytest.mark.parametrize("at_a_terminal", [True, False])
def test_an_error_inside_passes_through(at_a_terminal: bool, monkeypatch) -> None:
    if at_a_terminal:
        at_terminal(monkeypatch)
    with pytest.raises(ValueError, match="inside"), progress_bar("training", 2) as bar:
        bar.advance()
        raise ValueError("inside")
