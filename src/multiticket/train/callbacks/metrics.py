"""One line of ``metrics.jsonl`` an optimiser step."""

from __future__ import annotations

import time
import warnings
from typing import Any

from transformers import TrainerCallback

from multiticket.runs.lines import StepLines
from multiticket.runs.progress import RunProgress
from multiticket.runs.ranks import ALONE, Ranks
from multiticket.train.group_signal import running_share
from multiticket.train.phases import PHASES

NAMES = {
    "reward": "reward",
    "accuracy": "accuracy",
    "failures": "failures",
    "kl": "kl",
    "kl_per_token": "kl",
    "kl_per_completion": "kl_per_completion",
    "reference_kl": "reference_kl",
    "loss": "loss",
    "grad_norm": "grad_norm",
    "hidden_by_rounding": "hidden_by_rounding",
    "learning_rate": "learning_rate",
    "entropy": "entropy",
    "completion_length": "completions/mean_length",
    "truncated": "completions/clipped_ratio",
    "reward_std": "reward_std",
    "no_signal": "frac_reward_zero_std",
}
"""Our name for each number: TRL's. `kl_per_token` and `kl_per_completion` are what the step moved the policy, in nats;
`kl` is the older name of the first, from before there was the second. `no_signal` is the share of groups whose rewards
are all equal; `failures`, of completions that the verifier crashed on or had no time for."""
PHASE_NAMES = tuple(f"{phase}_s" for phase in PHASES)
"""Seconds of the step by phase, those that it had."""
PEAK_NAMES = tuple(f"{phase}_peak_bytes" for phase in PHASES)
"""The most memory held in each of them."""
ENGINE_NAMES = {
    "sampling_difference": "sampling/sampling_logp_difference/mean",
    "sampling_difference_most": "sampling/sampling_logp_difference/max",
}
"""With vLLM: how far its log-probability of a sampled token is from the trainer's, in nats."""
TOOL_NAMES = ("tool_calls", "tool_failures")
"""With tools: calls of a rollout, on average, and how many calls of the step failed."""
MOST_DIFFERENCE = 0.05
"""The mean above which a run warns. An engine in bf16 beside a trainer in fp32 is at 0.008, on the shipped base."""


class MetricsWriter(TrainerCallback):
    """Appends each step's numbers to a file and tells the progress bar.

    ``time`` is seconds of training so far, over all sessions: a resumed run goes on from that of the last line.

    Attributes:
        lines: what the file holds, in order; the same on every rank, so that all decide alike what follows from it.
    """

    def __init__(self, file: StepLines, progress: RunProgress, ranks: Ranks = ALONE) -> None:
        self.file = file
        self.ranks = ranks
        self.lines = ranks.by_first(file.read)
        self.seconds_before = float(self.lines[-1]["time"]) if self.lines else 0.0
        self.progress = progress
        self._began = time.monotonic()
        self._warned = False

    @property
    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self._began

    @property
    def no_signal(self) -> float | None:
        """Mean share of groups without a signal over all steps."""
        told = [line["no_signal"] for line in self.lines if line.get("no_signal") is not None]
        return sum(told) / len(told) if told else None

    @property
    def failures(self) -> int:
        """Completions of all steps whose score failed."""
        return round(sum(line.get("failures") or 0 for line in self.lines))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began = time.monotonic()
        self.progress.training(state.global_step)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        if not logs or "reward" not in logs:
            return
        line: dict[str, Any] = {"step": state.global_step, "time": round(self.seconds, 3)}
        line.update({name: logs.get(theirs) for name, theirs in NAMES.items()})
        line.update({name: logs[theirs] for name, theirs in ENGINE_NAMES.items() if theirs in logs})
        line.update({name: logs[name] for name in TOOL_NAMES if name in logs})
        line["signal"] = running_share([*self.lines, line])
        line.update({name: round(logs[name], 3) for name in PHASE_NAMES if name in logs})
        line.update({name: round(logs[name]) for name in PEAK_NAMES if name in logs})
        if state.is_world_process_zero:
            self._warn_of_other_weights(line.get("sampling_difference"))
        self.lines.append(self.ranks.by_first(lambda: self._written(line)))
        if state.is_world_process_zero:
            self.progress.step(
                state.global_step,
                logs["reward"],
                logs.get("kl_per_completion"),
                line["signal"],
                self.failures,
            )

    def _written(self, line: dict[str, Any]) -> dict[str, Any]:
        self.file.append(line)
        return line

    def _warn_of_other_weights(self, difference: float | None) -> None:
        """Once."""
        if difference is not None and difference > MOST_DIFFERENCE and not self._warned:
            self._warned = True
            warnings.warn(
                f"vLLM's log-probabilities are {difference:.3f} nats from the trainer's on average: its weights or "
                "their dtype may differ from the trained ones.",
                stacklevel=2,
            )
