"""Every setting of a run, checked before torch is imported.

The defaults are the paper's recipe (GRPO with a mean-only advantage, no KL penalty, temperature 1, AdamW
with weight decay 0.01, clip norm 1.0, constant rate) at a size for the shipped one-million-parameter base:
512 rollouts a step. A setting that cannot be right is refused with one sentence, as a :class:`ValueError`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from multiticket.tasks.asking import PLACE, Asking

Arm = Literal["full", "ticket", "lora"]
RATE_TIMES_DENSITY = 1e-4
"""What the shipped bases learn well with: runs of every density lie on one curve over rate x density."""
LORA_RATE_TIMES_ALPHA = 1e-2
"""For LoRA: what a first step moves goes by rate x alpha, whatever the rank, since its ranks move together."""
WATCHING = frozenset(
    {"eval", "eval_every", "samples_every", "keep_last", "report_to", "stop_on_collapse", "collapse"}
)
"""Settings that change what is seen of a run, and not what it learns: a ticket does not name them."""


class EvalConfig(BaseModel):
    """How a model is measured, before and after a run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    split: Literal["train", "validation", "test"] = "test"
    problems: int | None = Field(default=512, ge=1)
    """Problems measured: the first ones of the split; None for all."""
    samples: int = Field(default=4, ge=1)
    """Sampled completions a problem."""
    temperature: float = Field(default=1.0, gt=0)
    seed: int = Field(default=0, ge=0)
    """Seeds the sampling, so that one model always gets one score."""
    batch_size: int = Field(default=512, ge=1)
    """Completions generated together, at most."""
    batch_tokens: int = Field(default=2**17, ge=1)
    """Tokens of completions generated together, prompts included, at most: what the generation cache holds."""


class CollapseConfig(BaseModel):
    """What counts as a collapse; beyond anything that was seen in a run that learns."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kl: float = Field(default=0.15, gt=0)
    """Nats a token that a step moves the policy. The first step of a 1 M model that sorts letters: 0.004 at the best
    rate, 0.04 at three times that. Arithmetic at ten times its rate: 0.16 to 0.59 in five steps, nothing learned."""
    kl_steps: int = Field(default=5, ge=1)
    """Steps in a row above `kl`."""
    length_steps: int = Field(default=20, ge=1)
    """Steps in a row with nearly all completions cut off, or empty, and less than half of the best reward so far."""
    reward_steps: int = Field(default=20, ge=1)
    """Steps in a row without any reward."""


class RunConfig(BaseModel):
    """One training run."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = "arithmetic"
    """A task's name, or "module:attribute"."""
    model: str = "tiny-qwen2"
    """A shipped base, a folder with a Hugging Face checkpoint, or a name on the hub."""
    arm: Arm = "ticket"
    method: str = "random"
    """How the ticket arm's mask chooses positions."""
    density: float = Field(default=0.01, gt=0, le=1)
    """Trained fraction of every tensor; 1 for the full arm; for LoRA, the rank is chosen to come near it."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seeds the mask and, unless `training_seed` is given, the order of problems and the sampling."""
    part: int = Field(default=0, ge=0)
    """Which disjoint slice of the seed's permutation the mask takes."""
    scope: str = "all"
    """Which tensors the mask covers: all, or name patterns separated by commas."""
    mask_options: dict[str, Any] = Field(default_factory=dict)
    """What a method needs beside density and seed, such as `layers: first`."""
    lora_rank: int | None = Field(default=None, ge=1)
    """None: the one that trains nearest to density * all parameters."""
    lora_alpha: float = Field(default=32.0, gt=0)
    """The adapter is scaled by alpha / rank, so that one rate suits all ranks."""
    training_seed: int = Field(ge=0, lt=2**32)
    """Seeds the order of problems and the sampling: `seed` where it is not given."""

    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"]
    """Where it is not given: 1e-4 (full), 1e-4 / density (ticket), 1e-2 / lora_alpha; auto: found by `target_kl`."""
    target_kl: float = Field(default=0.15, gt=0)
    """The KL that a step should move, in nats a completion, with `learning_rate: auto`."""
    rate_control: Literal["probe", "average", "hold"] = "average"
    """With `auto`: keep the rate that the first batch gives, correct it over the first five steps, or to the end."""
    steps: int = Field(default=50, ge=1)
    """Optimiser steps."""
    rollouts: int = Field(default=512, ge=2)
    """Completions a step."""
    group: int = Field(default=16, ge=2)
    """Completions a problem; their mean reward is what each is compared with."""
    micro_batch: int = Field(ge=1)
    """Rollouts in one forward and backward pass; where it is not given, all of a step's at once."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """None: the task's own."""
    system_prompt: str | None = None
    """Said before every problem; None: the task's own, "" for none."""
    prompt_template: str | None = None
    """Stands around every problem, in the place of `{prompt}`; None: the task's own."""
    examples: Annotated[int, Field(ge=0)] | str | None = None
    """Solved problems shown before, as turns: how many of the training problems, or a file of JSON lines."""
    temperature: float = Field(default=1.0, gt=0)
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL penalty against the reference policy (the unbiased reverse KL's gradient, TRL's default)."""
    reference: Literal["base", "start"] = "base"
    """The policy that `beta` holds on to: the base model, or what the run starts from where that is a ticket."""
    weight_decay: float = Field(default=0.01, ge=0)
    clip_norm: float = Field(default=1.0, gt=0)
    """Largest gradient norm of what is trained: the values for a ticket."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the model's weights while they are trained; a ticket's values are kept in it."""
    kl_rollouts: int = Field(default=64, ge=0)
    """Rollouts on which each step's KL is estimated, at the cost of one forward pass over them; 0: not at all."""

    grpo: dict[str, Any] = Field(default_factory=dict)
    """Options of TRL's ``GRPOConfig`` by their own names, such as ``use_vllm: true``; checked when TRL is imported."""

    save_every: int | None = Field(default=None, ge=1)
    """Steps between checkpoints; None: none."""
    keep_last: int = Field(default=2, ge=1)
    """Checkpoints kept: the newest ones, beside the best on held-out problems."""
    eval: EvalConfig = Field(default_factory=EvalConfig)
    eval_every: int | None = Field(default=None, ge=1)
    """Steps between measurements on validation problems, taken as `eval` says; the best step's checkpoint is kept."""
    samples_every: int | None = Field(default=10, ge=1)
    """Steps between sample completions in the log; None: none."""
    report_to: tuple[Literal["wandb", "trackio"], ...] = ()
    """Where metrics go beside the run folder and its TensorBoard files."""
    stop_on_collapse: bool = True
    collapse: CollapseConfig = Field(default_factory=CollapseConfig)
    from_ticket: str | None = None
    """A ticket to go on from: the same mask on the same base, starting with its values."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_defaults(cls, values: Any) -> Any:
        """Work the settings that follow from others out, so that what is recorded is what was used."""
        if not isinstance(values, Mapping):
            return values
        filled = dict(values)
        if filled.get("arm") == "full":
            if filled.get("density") not in (None, 1, 1.0):
                raise ValueError(
                    "the full arm trains every parameter: leave density out, or take arm 'ticket'"
                )
            filled["density"] = 1.0
        if filled.get("training_seed") is None:
            filled["training_seed"] = filled.get("seed", 0)
        if filled.get("learning_rate") is None:
            density = filled.get("density", 0.01)
            if isinstance(density, (int, float)) and density > 0:
                alpha = filled.get("lora_alpha", 32.0)
                filled["learning_rate"] = _usual_rate(filled.get("arm"), density, alpha)
        if isinstance(filled.get("report_to"), str):
            filled["report_to"] = [name.strip() for name in filled["report_to"].split(",") if name.strip()]
        if filled.get("micro_batch") is None:
            filled["micro_batch"] = filled.get("rollouts", 512)
        return filled

    @model_validator(mode="after")
    def _only_tickets_go_on(self) -> RunConfig:
        if self.from_ticket is not None and self.arm != "ticket":
            raise ValueError(
                f"from_ticket goes on with a ticket's own mask, which the {self.arm} arm does not have: "
                "take arm 'ticket', or merge the ticket first and give the merged checkpoint as model"
            )
        return self

    @model_validator(mode="after")
    def _can_be_asked(self) -> RunConfig:
        if self.prompt_template is not None and PLACE not in self.prompt_template:
            raise ValueError(
                f"prompt_template needs {PLACE} where the problem goes, and {self.prompt_template!r} has none"
            )
        return self

    @model_validator(mode="after")
    def _sizes_fit(self) -> RunConfig:
        if self.rollouts % self.group:
            raise ValueError(
                f"rollouts ({self.rollouts}) must be a multiple of group ({self.group}), the completions of a problem"
            )
        if self.rollouts % self.micro_batch:
            raise ValueError(
                f"rollouts ({self.rollouts}) must be a multiple of micro_batch ({self.micro_batch})"
            )
        if self.learning_rate == "auto" and not self.kl_rollouts:
            raise ValueError(
                "learning_rate auto goes by each step's KL: give kl_rollouts a number, or learning_rate"
            )
        return self

    @property
    def asking(self) -> Asking:
        """How the model is asked, as far as the settings say."""
        return Asking.of(
            {name: getattr(self, name) for name in ("system_prompt", "prompt_template", "examples", "grpo")}
        )

    @property
    def usual_rate(self) -> float:
        """What `learning_rate` is where it is not given."""
        return _usual_rate(self.arm, self.density, self.lora_alpha)

    def default_output(self) -> Path:
        """The run folder's name where none is given: what distinguishes the run, below ``runs/``."""
        names = [self.task, Path(self.model).name, self.arm]
        if self.arm == "ticket":
            names += [self.method, f"{self.density:g}", f"seed{self.seed}"]
            names += [f"part{self.part}"] if self.part else []
            names += ["continued"] if self.from_ticket is not None else []
        elif self.arm == "lora":
            names += [f"rank{self.lora_rank}" if self.lora_rank else f"{self.density:g}", f"seed{self.seed}"]
        else:
            names += [f"seed{self.seed}"]
        return Path("runs") / "-".join(map(folder_word, names))


def folder_word(name: str) -> str:
    """A name as part of a folder's: a task's options may hold anything, and at any length."""
    word = re.sub(r"[^A-Za-z0-9._@+=-]", "_", name)
    return word if len(word) <= 80 else f"{word[:70]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _usual_rate(arm: Any, density: float, alpha: Any) -> float:
    if arm == "lora" and isinstance(alpha, (int, float)) and alpha > 0:
        return LORA_RATE_TIMES_ALPHA / alpha
    return RATE_TIMES_DENSITY / density


def build(settings: Mapping[str, Any]) -> RunConfig:
    """A checked configuration.

    Raises:
        ValueError: with one sentence naming the first setting that is wrong.
    """
    try:
        return RunConfig.model_validate(dict(settings))
    except ValidationError as error:
        raise ValueError(_sentence(error)) from None


def load(path: Path | None, overrides: Mapping[str, Any]) -> RunConfig:
    """The settings of a YAML (or JSON) file with `overrides` on top.

    Raises:
        ValueError: for a file that cannot be read as settings, an unknown setting, or a value out of bounds.
    """
    settings = read_settings(path) if path is not None else {}
    for key, value in overrides.items():
        if isinstance(value, Mapping) and isinstance(settings.get(key), Mapping):
            value = {**settings[key], **value}
        settings[key] = value
    return build(settings)


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, unchecked.

    Raises:
        ValueError: if the file is missing, is not YAML, or holds something else than settings.
    """
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read the settings in {path}: {error}.") from None
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ValueError(f"{path} must hold settings as 'name: value' lines.")
    return {key: _as_number(value) for key, value in settings.items()}


def read_options(given: Sequence[str]) -> dict[str, Any]:
    """``name=value`` words as a mapping, the values read as YAML.

    Raises:
        ValueError: if a word is not of that form, or a name is given twice.
    """
    import yaml

    options: dict[str, Any] = {}
    for word in given:
        name, equals, text = word.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise ValueError(f"An option of TRL is set as name=value, such as top_p=0.9, but is {word!r}.")
        if name in options:
            raise ValueError(f"TRL's {name} is set twice: give it once.")
        try:
            options[name] = _as_number(yaml.safe_load(text))
        except yaml.YAMLError:
            raise ValueError(f"The value of {name} cannot be read: {text!r}.") from None
    return options


def _as_number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as text (it wants 1.0e-3); people write rates so."""
    if isinstance(value, dict):
        return {key: _as_number(item) for key, item in value.items()}
    if isinstance(value, str) and re.fullmatch(r"\d+(\.\d*)?[eE][+-]?\d+", value):
        return float(value)
    return value


def _sentence(error: ValidationError) -> str:
    """The first thing pydantic complains about, in words."""
    first = error.errors()[0]
    fields = {*RunConfig.model_fields, *EvalConfig.model_fields}
    unknown = first["type"] == "extra_forbidden"
    name = ".".join(str(part) for part in first["loc"] if unknown or part in fields)
    given = first.get("input")
    if first["type"] == "extra_forbidden":
        known = ", ".join(sorted(_siblings(first["loc"])))
        return f"Unknown setting '{name}'; the settings are {known}."
    if first["type"] == "value_error":
        message = str(first.get("ctx", {}).get("error", first["msg"]))
        return f"{message[0].upper()}{message[1:]}."
    message = first["msg"].removeprefix("Input ").removesuffix(".")
    return f"{name} {message}, but is {given!r}."


def _siblings(location: tuple[int | str, ...]) -> list[str]:
    nested: dict[Any, type[BaseModel]] = {"eval": EvalConfig, "collapse": CollapseConfig}
    return list(nested.get(location[0] if len(location) > 1 else None, RunConfig).model_fields)
