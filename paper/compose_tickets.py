"""Do tickets compose? Two tasks' tickets on one base, apart and together, and why it comes out as it does.

    python paper/compose_tickets.py --runs runs/evidence     # three seeds; takes what the study has done
    python paper/compose_tickets.py --seeds 0 --problems 64 --steps 5 --rollouts 64     # a try, in minutes

For each seed: ticket A (first task, part 0) and ticket B (second task, part 1, so that they share no position), full
training and LoRA of the same number of values on each task. Then in one base: both tickets, B trained on top of A,
full updates summed and averaged, both adapters. Each is measured on both tasks, and told in KL: what a ticket does off
its own task, and whether two interact. --remedies: `rate` trains at a third of it, `kl` holds on to the base, `mixed`
trains B on top of A, and one ticket of both budgets, on problems of both tasks.

Runs are run folders in --output and single problems' results lie there too: stopped, it goes on where it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from composition import SHUFFLED, Combination, Composed, Composer, Found
from composition_page import SCALED, composition_section
from extra_runs import ExtraRuns
from multiticket.cli.outputs import refuse_unwritable
from multiticket.config import EvalConfig, RunConfig
from multiticket.research.study.page_section import PageSection
from multiticket.research.theory.trajectory import Contexts
from multiticket.runs.folder import RunFolder
from multiticket.ticket import Ticket, merge_checkpoint
from program import command_line, finish, program_parser, run_program, say

A, B, B_ON_A = "ticket A", "ticket B", "B on top of A"
TOGETHER = "tickets together"
MIXED_ON_A, MIXED = "B on top of A, both tasks", "one ticket of both"
REMEDIES = {"rate": ", a third of the rate", "kl": ", held to the base"}
FEW = {"eval": {"problems": 64, "samples": 1}}
"""What a run measures itself: everything is measured here, on both tasks and all in one way."""
MIXED_TASK = "mixed_task:TASK"


def combinations(vectors: Sequence[str], factors: Sequence[float]) -> list[Combination]:
    """Everything that can be made of the task vectors that there are."""
    apart = (A, B)
    found = [
        Combination(TOGETHER, ((1.0, A), (1.0, B)), apart),
        Combination("tickets averaged", ((0.5, A), (0.5, B)), apart),
        Combination(B_ON_A, ((1.0, B_ON_A),), apart),
        Combination("A and B" + SHUFFLED, ((1.0, A), (1.0, B + SHUFFLED)), apart),
        Combination("B and A" + SHUFFLED, ((1.0, A + SHUFFLED), (1.0, B)), apart),
        Combination("full summed", ((1.0, "full A"), (1.0, "full B")), ("full A", "full B")),
        Combination("full averaged", ((0.5, "full A"), (0.5, "full B")), ("full A", "full B")),
        Combination("LoRA summed", ((1.0, "LoRA A"), (1.0, "LoRA B")), ("LoRA A", "LoRA B")),
        Combination("LoRA averaged", ((0.5, "LoRA A"), (0.5, "LoRA B")), ("LoRA A", "LoRA B")),
        *(
            Combination(f"together{more}", ((1.0, A + more), (1.0, B + more)), (A + more, B + more))
            for more in REMEDIES.values()
        ),
        Combination(MIXED_ON_A, ((1.0, MIXED_ON_A),), apart),
        Combination(MIXED, ((1.0, MIXED),), apart),
    ]
    for factor in factors:
        found.append(Combination(f"{B}{SCALED}{factor:g}", ((1.0, A), (factor, B)), apart))
        found.append(Combination(f"{A}{SCALED}{factor:g}", ((factor, A), (1.0, B)), apart))
    needed = [{part.removesuffix(SHUFFLED) for _, part in one.parts} | {*one.apart} for one in found]
    return [one for one, parts in zip(found, needed, strict=True) if parts <= {*vectors}]


class Plan:
    """The runs of every seed."""

    def __init__(self, options: Any) -> None:
        self.options = options
        self.first, self.second = options.tasks
        self.extra = ExtraRuns(options.study, options.runs, options.output)
        sizes = {"steps": options.steps, "rollouts": options.rollouts, "micro_batch": options.rollouts}
        self.sizes = {name: value for name, value in sizes.items() if value is not None}
        self.model = self.extra.settings(self.first).model if options.model is None else options.model
        self.shared = {"model": self.model, "density": options.density}

    def settings(self, task: str, seed: int, **own: Any) -> RunConfig:
        given = {**self.shared, **self.sizes, **FEW, "seed": seed, **own}
        return self.extra.settings(task, **given)

    def apart(self, seed: int) -> dict[str, RunConfig]:
        """What is trained on the base, by the names of the task vectors."""
        runs: dict[str, RunConfig] = {}
        remedies = {"": {}, **{REMEDIES[name]: one for name, one in self._remedies().items()}}
        for letter, task, part in (("A", self.first, 0), ("B", self.second, 1)):
            for more, own in remedies.items():
                runs[f"ticket {letter}{more}"] = self.settings(task, seed, part=part, **own)
            if "full" in self.options.arms:
                runs[f"full {letter}"] = self.settings(task, 0, training_seed=seed, arm="full", density=1.0)
            if "lora" in self.options.arms:
                runs[f"LoRA {letter}"] = self.settings(task, seed, arm="lora", learning_rate="auto")
        if "mixed" in self.options.remedies:
            both = 2 * self.options.density
            steps = runs[A].steps + runs[B].steps
            rate = float(f"{float(runs[B].learning_rate) / 2:.6g}")
            runs[MIXED] = self._mixed(seed, density=both, steps=steps, learning_rate=rate)
        return runs

    def on_top(self, seed: int, runs: dict[str, Path]) -> dict[str, RunConfig]:
        """What is trained on top of ticket A, merged into a checkpoint."""
        merged = self.options.output / f"{runs[A].name}-merged"
        if not merged.exists():
            from multiticket import bases

            merge_checkpoint(bases.resolve(self.model), Ticket.load(RunFolder(runs[A]).ticket), merged)
        alone = self.settings(self.second, seed, part=1)
        own = {"model": str(merged), "part": 1, "learning_rate": alone.learning_rate}
        found = {B_ON_A: self.settings(self.second, seed, **own)}
        if "mixed" in self.options.remedies:  # as many problems of B as B alone
            found[MIXED_ON_A] = self._mixed(seed, **own, steps=2 * alone.steps)
        return found

    def _mixed(self, seed: int, **own: Any) -> RunConfig:
        given = {**self.shared, **self.sizes, **FEW, "seed": seed, **own}
        return self.extra.settings(MIXED_TASK, rates_of=self.second, **given)

    def _remedies(self) -> dict[str, dict[str, Any]]:
        known = {"rate": {"slower": 3}, "kl": {"beta": self.options.beta}}
        return {name: known[name] for name in self.options.remedies if name in known}


@dataclass(frozen=True)
class Measured:
    """One seed: its runs, and everything that is measured of them."""

    composed: Composed
    combinations: list[Combination]
    runs: dict[str, dict[str, Any]]
    """What the run of each task vector says of itself."""


def measure(plan: Plan, seed: int, options: Any) -> Measured:
    runs = plan.extra.do(plan.apart(seed), options.jobs, say)
    runs |= plan.extra.do(plan.on_top(seed, runs), options.jobs, say)
    composer = Composer(
        plan.model,
        options.tasks,
        runs,
        EvalConfig(problems=options.problems, samples=options.samples),
        Contexts("validation", options.contexts, options.group, 0),
        options.output / "evals",
        lambda line: say(f"seed {seed}: {line}"),
    )
    made = combinations(list(runs), options.factors)
    results = {name: RunFolder(path).read_result() or {} for name, path in runs.items()}
    told = ("learning_rate", "steps", "nnz", "training_seed", "stopped")
    return Measured(
        composer.measure(seed, made),
        made,
        {name: {key: result.get(key) for key in told} for name, result in results.items()},
    )


def main() -> None:
    parser = program_parser(__doc__ or "", "compose")
    parser.add_argument(
        "--study", type=Path, default=Path("recipes/studies/evidence.yaml"), help="gives the settings"
    )
    parser.add_argument(
        "--runs", type=Path, help="the study's folder of runs, from which those that match are taken"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("runs/compose"), help="of other runs (%(default)s)"
    )
    parser.add_argument("--tasks", nargs=2, default=["arithmetic", "alphabet_sort"], metavar=("A", "B"))
    parser.add_argument("--model", help="the base; default the study's")
    parser.add_argument("--density", type=float, default=0.01)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="instead of the study's")
    parser.add_argument("--rollouts", type=int, help="instead of the study's")
    parser.add_argument("--problems", type=int, default=512, help="test problems of each task (%(default)s)")
    parser.add_argument("--samples", type=int, default=4, help="completions of each (%(default)s)")
    parser.add_argument("--contexts", type=int, default=64, help="validation problems for KL (%(default)s)")
    parser.add_argument("--group", type=int, default=4, help="completions of each of those (%(default)s)")
    parser.add_argument(
        "--factors", nargs="*", type=float, default=[0.25, 0.5, 0.75], help="by which one is scaled"
    )
    parser.add_argument("--arms", nargs="*", choices=("full", "lora"), default=["full", "lora"])
    parser.add_argument(
        "--remedies", nargs="*", choices=("rate", "kl", "mixed"), default=["rate", "kl", "mixed"]
    )
    parser.add_argument("--beta", type=float, default=0.1, help="the KL term's weight (%(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    options = parser.parse_args()
    refuse_unwritable(options.section)
    plan = Plan(options)
    measured = [measure(plan, seed, options) for seed in options.seeds]
    finish(section_of(plan, measured, options, command_line(parser, options)), options.section)


def section_of(plan: Plan, measured: Sequence[Measured], options: Any, command: str) -> PageSection:
    """The section, with what the runs were trained with in words."""
    found = Found([one.composed for one in measured], measured[0].combinations, options.tasks)
    runs = plan.apart(options.seeds[0])
    words = []
    for letter, task in zip("AB", options.tasks, strict=True):
        arms = {name: runs.get(f"{name} {letter}") for name in ("ticket", "full", "LoRA")}
        rates = [f"{config.learning_rate} ({name})" for name, config in arms.items() if config is not None]
        ticket = runs[f"ticket {letter}"]
        words.append(f"{task}: {ticket.steps} steps of {ticket.rollouts} rollouts, rate {', '.join(rates)}")
    start = f"{plan.model}, density {options.density:g}; A is {options.tasks[0]}, B {options.tasks[1]}"
    parameters = f"{'; '.join([start, *words])}."
    notes = ["Not tried: a KL term on the other task's contexts, which the trainer does not have."]
    if "kl" in options.remedies:
        notes.append(f"Held to the base: a KL term of weight {options.beta:g} on the ticket's own contexts.")
    if "mixed" in options.remedies:
        notes.append(
            "Both tasks: problems of A and B in turn. On top of A for twice B's steps, so that B's share is the same; "
            f"one ticket of both has {100 * 2 * options.density:g} % of the values (A's positions and B's), both "
            "budgets of steps, and half of B's rate."
        )
    for one in measured:
        for name, run in one.runs.items():
            if run["stopped"]:
                step, reason = run["stopped"]["step"], run["stopped"]["reason"]
                notes.append(f"{name} of seed {one.composed.seed} collapsed at step {step} ({reason}).")
    given = (
        "seeds",
        "tasks",
        "density",
        "problems",
        "samples",
        "contexts",
        "group",
        "factors",
        "remedies",
        "beta",
    )
    about = {name: getattr(options, name) for name in given} | {"model": Path(plan.model).name}
    about["runs"] = [one.runs for one in measured]
    return composition_section(found, TOGETHER, parameters, command, notes, about)


if __name__ == "__main__":
    run_program(main)
