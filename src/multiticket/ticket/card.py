"""The model card of a ticket: what it is, what it scores, and the lines that use it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from multiticket.ticket.ticket import Ticket

PAPER = "2602.01599"
BEGIN, END = "<!-- multiticket: begin -->", "<!-- multiticket: end -->"
"""Around what is written anew with every push; the rest of a card is its owner's."""
DATASETS = {"gsm8k": "openai/gsm8k", "math": "HuggingFaceH4/MATH-500"}
SETTINGS = (
    "arm", "method", "density", "seed", "part", "scope", "steps", "rollouts", "group", "learning_rate", "temperature",
    "beta", "max_completion_tokens", "dtype",
)  # fmt: skip
SCORES = {"pass@1": "interval", "greedy": "greedy_interval"}


def describe(ticket: Ticket, repo: str, base: str, on_hub: bool) -> str:
    """The card's text, in Markdown, between the markers.

    Args:
        repo: the ticket's own name on the hub.
        base: the base's, or a shipped base's.
    """
    numel = ticket.mask.numel
    link = f"[{base}](https://huggingface.co/{base})" if on_hub else f"`{base}`, which ships with multiticket"
    task = ticket.provenance.get("task")
    lines = [
        BEGIN,
        f"A ticket: {ticket.nnz:,} of {numel:,} parameters ({ticket.nnz / numel:.2%}) of {link}, trained by "
        f"reinforcement learning{f' on `{task}`' if isinstance(task, str) else ''}. All others are the base's, bit for "
        f"bit ([the method](https://arxiv.org/abs/{PAPER})).",
        "",
        *_score_table(scores_of(ticket)),
        "## Use",
        "",
        "```python",
        *_use(ticket, repo, base, on_hub),
        "```",
        "",
        "The file is safetensors: mask, values, and a fingerprint of the base's weights at the mask's positions. Where "
        "those differ, the ticket is refused.",
        "",
        *_settings(ticket.provenance),
        END,
    ]
    return "\n".join(lines)


def scores_of(ticket: Ticket) -> Mapping[str, Any]:
    """The provenance's scores before and after training; {} where it has none that can be shown."""
    scores = ticket.provenance.get("scores")
    if not isinstance(scores, Mapping):
        return {}
    return {
        when: s for when, s in scores.items() if isinstance(s, Mapping) and isinstance(s.get("pass@1"), float)
    }


def metadata(ticket: Ticket, repo: str, base: str, on_hub: bool, license: str | None) -> dict[str, Any]:
    """The arguments of ``huggingface_hub.ModelCardData``, without results."""
    found: dict[str, Any] = {
        "library_name": "multiticket",
        "pipeline_tag": "text-generation",
        "tags": ["multiticket", "sparse", "rlvr", f"arxiv:{PAPER}"],
        "model_name": repo.split("/")[-1],
    }
    if on_hub:
        found |= {"base_model": base, "base_model_relation": "adapter"}
    return found | ({"license": license} if license else {})


def results(ticket: Ticket) -> list[dict[str, Any]]:
    """The arguments of ``huggingface_hub.EvalResult`` for each score after training, as fractions of 1."""
    after = scores_of(ticket).get("after")
    task = ticket.provenance.get("task")
    if after is None or not isinstance(task, str):
        return []
    name = task.partition("@")[0]
    return [
        {
            "task_type": "text-generation",
            "dataset_type": DATASETS.get(name, name),
            "dataset_name": name,
            "dataset_split": str(after.get("split", "test")),
            "metric_type": metric,
            "metric_value": after[metric],
            "metric_args": {"interval_95": _interval(after, interval), "problems": after.get("n")},
        }
        for metric, interval in SCORES.items()
        if isinstance(after.get(metric), float)
    ]


def _score_table(scores: Mapping[str, Any]) -> list[str]:
    if "after" not in scores:
        return []
    lines = ["| | pass@1 | greedy |", "|---|---|---|"]
    shipped = f"merged, in {scores['shipped'].get('dtype')}" if "shipped" in scores else ""
    for when, words in (("before", "base"), ("after", "with this ticket"), ("shipped", shipped)):
        if when in scores:
            cells = [_percent(scores[when], metric, interval) for metric, interval in SCORES.items()]
            lines.append(f"| {words} | {' | '.join(cells)} |")
    after = scores["after"]
    lines += [
        "",
        f"{after.get('n')} {after.get('split', 'test')} problems, {after.get('samples')} samples each at temperature "
        f"{after.get('temperature')}; 95 % intervals over problems.",
        "",
    ]
    return lines


def _percent(scores: Mapping[str, Any], metric: str, interval: str) -> str:
    value, between = scores.get(metric), _interval(scores, interval)
    if not isinstance(value, float):
        return ""
    return f"{value:.1%}" + (f" ({between[0]:.1%} to {between[1]:.1%})" if between else "")


def _interval(scores: Mapping[str, Any], name: str) -> list[float]:
    """The two ends; none where the ticket's author wrote something else there."""
    ends: Any = scores.get(name)
    numbers = isinstance(ends, list) and len(ends) == 2 and all(isinstance(end, int | float) for end in ends)
    return list(ends) if numbers else []


def _use(ticket: Ticket, repo: str, base: str, on_hub: bool) -> list[str]:
    dtype = str(ticket.dtypes[0]).removeprefix("torch.")
    model = [
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{base}")',
        f'model = AutoModelForCausalLM.from_pretrained("{base}", dtype="{dtype}")',
    ]
    shipped = ["import torch", "", f'model, tokenizer = mt.bases.load("{base}", torch.{dtype})']
    return [
        "import multiticket as mt",
        *(model if on_hub else shipped),
        "",
        f'ticket = mt.Ticket.load("{repo}")',
        "with ticket.applied(model):  # the exit gives the base back, bit for bit",
        '    ids = tokenizer("...", return_tensors="pt").input_ids',
        "    print(tokenizer.decode(model.generate(ids, max_new_tokens=64)[0]))",
        "ticket.merge(model)  # or for good",
    ]


def _settings(provenance: Mapping[str, Any]) -> list[str]:
    rows = [(name, provenance[name]) for name in SETTINGS if provenance.get(name) is not None]
    if not rows:
        return []
    return ["## Training", "", "| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows), ""]
