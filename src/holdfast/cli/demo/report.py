"""How the demonstration is told: a line per thing that happens: when, who, what, and its latency.

With --json the same lines as JSON. It also counts: which process has run the body of which step how often.
"""

import time
from collections import Counter
from typing import Any

from holdfast.cli.demo.cast import Actor, Line
from holdfast.cli.screen import Screen, to_json

STYLES = {"demo": "dim", "client": "cyan", "bank": "yellow", "shop 1": "green", "shop 2": "magenta"}
WIDTH = 64
"""Columns for what happens; the latencies stand behind."""

REMARK = "Latencies include the commit; the first call over each connection also prepares its statement."


class Report:
    """The lines of one demonstration."""

    def __init__(self, screen: Screen) -> None:
        self.steps: Counter[tuple[str, str, int]] = Counter()
        """How often a step's body has run: by workflow, step and process."""
        self._screen = screen
        self._begun = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.perf_counter() - self._begun

    def title(self, text: str) -> None:
        """What comes next; people only."""
        if not self._screen.json:
            self._screen.line()
            self._screen.line((text, "bold"))

    def say(self, who: str, what: str, *, took: float | None = None, of: str = "", style: str = "") -> None:
        """Something has happened now. `took`: its latency in seconds, measured from `of`."""
        milliseconds = self.elapsed * 1000
        if self._screen.json:
            facts: dict[str, Any] = {"ms": round(milliseconds, 1), "who": who, "what": what}
            if took is not None:
                facts |= {"latency_ms": round(took * 1000, 2), "latency": of}
            self._screen.data(facts)
            return
        spans = [
            (f"{milliseconds:7.0f} ms  ", "dim"),
            (f"{who:<8}", STYLES.get(who, "")),
            (f"{what:<{WIDTH}}", style),
        ]
        if took is not None:
            spans += [(f"{took * 1000:8.1f} ms", "bold"), (f"  {of}", "dim")]
        self._screen.line(*spans)

    def hear(self, actor: Actor, line: Line) -> None:
        """What another process has told."""
        match line["event"]:
            case "step":
                self.steps[line["workflow"], line["step"], line["pid"]] += 1
                self._step(actor.name, line)
            case "sent":
                again = ", delivered again" if line["delivery"] > 1 else ""
                what = f"payment sent, key {line['key']}{again}"
                self.say(actor.name, what, took=line["took"], of="call → committed")
            case "log":
                self.say(actor.name, line["text"], style="dim")

    def _step(self, who: str, line: Line) -> None:
        if line["message_at"] is None:
            self.say(who, f"step {line['step']}")
        else:
            took = line["at"] - line["message_at"]
            self.say(
                who, f"woken by the message: step {line['step']}", took=took, of="send → recv, other process"
            )

    def end(self, good: bool) -> None:
        """The last line."""
        if self._screen.json:
            self._screen.data({"ok": good, "ms": round(self.elapsed * 1000, 1)})
            return
        self._screen.line()
        self._screen.line((REMARK, "dim"))
        words = "All as promised" if good else "NOT as promised"
        self._screen.line()
        self._screen.line((f"{words}, in {self.elapsed:.1f} s", "bold" if good else "bold red"))

    def result(self, workflow_id: str, receipt: object) -> None:
        """What a checkout has come to."""
        if self._screen.json:
            self._screen.data({"result": receipt, "id": workflow_id})
        else:
            self._screen.line((f"  {workflow_id}  ", "cyan"), (to_json(receipt), "bold"))

    def check(self, text: str, good: bool) -> None:
        """One thing that had to be so."""
        if self._screen.json:
            self._screen.data({"check": text, "ok": good})
        else:
            self._screen.line(("  ✓ " if good else "  ✗ ", "green" if good else "bold red"), (text, ""))

    def table(self, workflow: str, killed: Actor, heir: Actor) -> None:
        """Runs of step bodies of one workflow: a row per step, a column per process."""
        counts = {
            step: (self.steps[workflow, step, killed.pid], self.steps[workflow, step, heir.pid])
            for step in self.names(workflow)
        }
        if self._screen.json:
            for step, (before, after) in counts.items():
                self._screen.data({"step": step, "runs": {str(killed.pid): before, str(heir.pid): after}})
            return
        heads = (f"{killed.name}, killed", heir.name)
        self._screen.line((f"  {'times the body ran':<20}", "dim"), (f"{heads[0]:>16}{heads[1]:>10}", "dim"))
        for step, (before, after) in counts.items():
            style = "yellow" if before and after else ""
            note = "   cut in two by the kill: at least once" if before and after else ""
            self._screen.line((f"  {step:<20}{before or '–':>16}{after or '–':>10}", style), (note, "dim"))

    def names(self, workflow: str) -> list[str]:
        """The steps of a workflow whose bodies have run, in the order of their first runs."""
        return list(dict.fromkeys(step for found, step, _ in self.steps if found == workflow))
