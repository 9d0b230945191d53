"""Every setting of a run, checked before torch is imported.

A setting is declared here and nowhere else: its name is the key in a YAML file and in ``config.json``, and with its
type, bounds, default and docstring it becomes an option of ``multiticket train`` (:mod:`multiticket.config.options`).
The defaults are the paper's recipe (GRPO with a mean-only advantage, no KL penalty, temperature 1, AdamW
with weight decay 0.01, clip norm 1.0, constant rate) at a size for the shipped one-million-parameter base:
512 rollouts a step. A setting that cannot be right is refused with one sentence, as a :class:`ValueError`.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from multiticket import bases
from multiticket.arms.facts import ARMS, Facts
from multiticket.config import older_names

if TYPE_CHECKING:
    from multiticket.tasks.asking import Asking

    Arm = str
else:
    Arm = Literal[tuple(ARMS)]
OTHER_MODELS = 0.05
"""Where the search for another model's rate begins, in the shipped bases' rates. One of 135 M parameters took 0.06."""


class Role(enum.Enum):
    """What a setting leaves alone; noted in its type."""

    WATCHING = "what a run learns: it changes what is seen of it, and a ticket does not name it"
    RESUMABLE = "what was computed already: a run that goes on may be given another"


class EvalConfig(BaseModel):
    """How a model is measured, before and after a run."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    split: Literal["train", "validation", "test"] = "test"
    """Split to evaluate on: test, or validation to choose settings."""
    problems: int | None = Field(default=512, ge=0)
    """Number of problems, from the split's beginning; 0 for all."""
    samples: int = Field(default=4, ge=1)
    """Sampled completions per problem."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of the evaluation."""
    seed: int = Field(default=0, ge=0)
    """Seed of the sampling; the same seed gives the same score."""
    batch_size: int = Field(default=512, ge=1)
    """Largest number of completions generated together."""
    batch_tokens: int = Field(default=2**17, ge=1)
    """Largest number of tokens generated together, prompts included: the size of the KV cache."""

    @field_validator("problems", mode="before")
    @classmethod
    def _zero_is_all(cls, value: Any) -> Any:
        return None if isinstance(value, int) and value == 0 else value


class CollapseConfig(BaseModel):
    """What counts as a collapse; beyond anything that was seen in a run that learns."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kl_per_token: float = Field(default=0.15, gt=0)
    """Consecutive steps that each move more KL than this, in nats per token, are a collapse."""
    # The first step of a 1 M model that sorts letters: 0.004 at the best rate, 0.04 at three times that. Arithmetic at
    # ten times its rate: 0.16 to 0.59 in five steps, nothing learned.
    kl_steps: int = Field(default=5, ge=1)
    """Number of such steps."""
    length_steps: int = Field(default=20, ge=1)
    """Consecutive steps with nearly all completions truncated or empty, and less than half of the best reward."""
    reward_steps: int = Field(default=20, ge=1)
    """Consecutive steps without reward."""

    @model_validator(mode="before")
    @classmethod
    def _by_the_present_names(cls, values: Any) -> Any:
        return (
            older_names.by_present_names(values, older_names.COLLAPSE)
            if isinstance(values, Mapping)
            else values
        )


class RunConfig(BaseModel):
    """One training run."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    task: str = "arithmetic"
    """A name, such as gsm8k or reasoning_gym:chain_sum, or your own "module:task" or "module:score@data.jsonl"."""
    model: str = "tiny-qwen2"
    """A shipped base, a folder with a Hugging Face checkpoint, a GGUF file, or a name on the hub."""
    arm: Arm = "ticket"
    """What trains: every parameter (full), the positions of a mask (ticket), or an adapter (lora, shira)."""
    method: str = "random"
    """How the mask chooses positions: random, layers, modules, columns, magnitude, fisher and others."""
    density: float = Field(default=0.01, gt=0, le=1)
    """Trained fraction of every tensor; 1 for the full arm. An adapter gets the rank that comes nearest to it."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the mask and, where `training_seed` is not given, of the training."""
    part: int = Field(default=0, ge=0)
    """Index of the mask among the disjoint masks of one seed."""
    scope: str = "all"
    """Tensors that the mask covers: all, or name patterns separated by commas, such as '*mlp*'."""
    mask_options: dict[str, Any] = Field(default_factory=dict)
    """Options of the method, such as "layers: first"."""
    lora_rank: int | None = Field(default=None, ge=1)
    """An adapter's rank. By default the one whose number of values is nearest to density * all parameters."""
    lora_alpha: float = Field(default=32.0, gt=0)
    """The adapter is scaled by alpha / rank, so that one learning rate suits all ranks."""
    training_seed: int = Field(ge=0, lt=2**32)
    """Seed of the training alone: the order of problems and the sampling. By default that of the mask."""

    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """A number, or auto: set from the KL of a step (see `target_kl_per_completion`)."""
    target_kl_per_completion: float = Field(default=0.15, gt=0)
    """With `learning_rate` auto: the KL that a step should move, in nats per completion (the sum over its tokens)."""
    rate_control: Literal["probe", "average", "hold"] = "average"
    """With `learning_rate` auto: keep the rate of the first batch (probe), correct it for five steps (average), or
    always (hold)."""
    steps: Annotated[int, Role.RESUMABLE] = Field(default=50, ge=1)
    """Optimiser steps."""
    rollouts: int = Field(default=512, ge=2)
    """Completions per step."""
    group: int = Field(default=16, ge=2)
    """Completions per problem; the advantage is the reward minus their mean."""
    micro_batch: int = Field(ge=1)
    """Rollouts in one forward and backward pass. By default all of a step."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """Longest completion. By default the task's own."""
    system_prompt: str | None = None
    """System prompt; '' for none. By default the task's own."""
    prompt_template: str | None = None
    """Text around every problem, which replaces {prompt}. By default the task's own."""
    examples: Annotated[int, Field(ge=0)] | str | None = None
    """Solved examples shown first, as chat turns: a number of training problems, or a file of JSON lines."""
    temperature: float = Field(default=1.0, gt=0)
    """Sampling temperature of the rollouts."""
    beta: float = Field(default=0.0, ge=0)
    """Weight of the KL penalty against the reference policy."""
    reference: Literal["base", "start"] = "base"
    """Reference policy of the KL penalty: the base, or the ticket that the run starts from."""
    weight_decay: float = Field(default=0.01, ge=0)
    """AdamW's weight decay."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Clip the gradient's norm, over what trains, to this."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The weights' dtype in training, and that of a saved ticket's values."""
    kl_rollouts: int = Field(default=64, ge=0)
    """Rollouts used to estimate each step's KL, for one more forward pass over them; 0 to skip it."""

    rollouts_by: Literal["transformers", "vllm"] = "transformers"
    """Engine for rollouts: transformers in the training process, or vLLM (the same as --set use_vllm=true)."""
    grpo: dict[str, Any] = Field(default_factory=dict)
    """Options of TRL's GRPOConfig by their own names; on a command line --set name=value, as often as wanted."""

    save_every: Annotated[int | None, Role.RESUMABLE] = Field(default=None, ge=1)
    """Steps between checkpoints. By default there are none."""
    keep_last: Annotated[int, Role.WATCHING, Role.RESUMABLE] = Field(default=2, ge=1)
    """Number of newest checkpoints to keep, besides the best on validation problems."""
    eval: Annotated[EvalConfig, Role.WATCHING] = Field(default_factory=EvalConfig)
    """How the model is measured before and after."""
    eval_every: Annotated[int | None, Role.WATCHING] = Field(default=None, ge=1)
    """Steps between evaluations on validation problems; the best checkpoint is kept. By default none."""
    samples_every: Annotated[int | None, Role.WATCHING] = Field(default=10, ge=1)
    """Steps between sample completions in the log."""
    report_to: Annotated[tuple[Literal["wandb", "trackio"], ...], Role.WATCHING, Role.RESUMABLE] = ()
    """Log metrics to these services too, separated by a comma; the run folder and TensorBoard always get them."""
    stop_on_collapse: Annotated[bool, Role.WATCHING, Role.RESUMABLE] = True
    """Stop when KL, length or reward collapse, and keep the checkpoint before that."""
    collapse: Annotated[CollapseConfig, Role.WATCHING] = Field(default_factory=CollapseConfig)
    """What counts as a collapse."""
    from_ticket: str | None = None
    """Continue from this ticket: the same mask on the same base, starting with its values."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_defaults(cls, values: Any) -> Any:
        """Work the settings that follow from others out, so that what is recorded is what was used."""
        if not isinstance(values, Mapping):
            return values
        filled = older_names.by_present_names(values)
        arm = ARMS.get(str(filled.get("arm", cls.model_fields["arm"].default)))
        if arm is not None and (density := arm.density(filled.get("density"))) is not None:
            filled["density"] = density
        if filled.get("training_seed") is None:
            filled["training_seed"] = filled.get("seed", 0)
        if filled.get("learning_rate", "") is None:
            del filled["learning_rate"]
        if isinstance(filled.get("report_to"), str):
            filled["report_to"] = [name.strip() for name in filled["report_to"].split(",") if name.strip()]
        grpo = filled.get("grpo")
        if isinstance(grpo, Mapping):
            if filled.get("rollouts_by", "vllm") == "vllm" and grpo.get("use_vllm"):
                filled["rollouts_by"] = "vllm"
            elif "use_vllm" in grpo and bool(grpo["use_vllm"]) != (filled.get("rollouts_by") == "vllm"):
                raise ValueError("rollouts_by and TRL's use_vllm contradict each other: omit use_vllm")
        if filled.get("rollouts_by") == "vllm":
            filled["grpo"] = {**(grpo or {}), "use_vllm": True}
        if filled.get("micro_batch") is None:
            filled["micro_batch"] = filled.get("rollouts", 512)
        return filled

    @model_validator(mode="after")
    def _only_tickets_go_on(self) -> RunConfig:
        if self.from_ticket is not None and not self.facts.takes_ticket:
            raise ValueError(
                f"from_ticket continues with a ticket's own mask, which the {self.arm} arm does not have: "
                "use arm 'ticket', or merge the ticket first and give the merged checkpoint as model"
            )
        return self

    @model_validator(mode="after")
    def _can_be_asked(self) -> RunConfig:
        from multiticket.tasks.asking import PLACE

        if self.prompt_template is not None and PLACE not in self.prompt_template:
            raise ValueError(
                f"prompt_template must contain {PLACE} for the problem, but {self.prompt_template!r} has none"
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
                "learning_rate auto needs each step's KL: set kl_rollouts above 0, or set learning_rate to a number"
            )
        return self

    @property
    def asking(self) -> Asking:
        """How the model is asked, as far as the settings say."""
        from multiticket.tasks.asking import Asking

        return Asking.of(
            {name: getattr(self, name) for name in ("system_prompt", "prompt_template", "examples", "grpo")}
        )

    @property
    def facts(self) -> Facts:
        """What is known of the arm."""
        return ARMS[self.arm]

    @property
    def usual_rate(self) -> float:
        """Where the search for a rate begins: near the best one for the shipped bases, and below it for others."""
        rate = self.facts.usual_rate(self.density, self.lora_alpha)
        return rate if self.model in bases.names() else OTHER_MODELS * rate

    def default_output(self) -> Path:
        """The run folder's name where none is given: what distinguishes the run, below ``runs/``."""
        names = [self.task, Path(self.model).name, self.arm, *self.facts.folder_words(self)]
        return Path("runs") / "-".join(map(folder_word, names))


def folder_word(name: str) -> str:
    """A name as part of a folder's: a task's options may hold anything, and at any length."""
    word = re.sub(r"[^A-Za-z0-9._@+=-]", "_", name)
    return word if len(word) <= 80 else f"{word[:70]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def having(role: Role) -> frozenset[str]:
    """The settings of a role."""
    return frozenset(name for name, field in RunConfig.model_fields.items() if role in field.metadata)


WATCHING = having(Role.WATCHING)
RESUMABLE = having(Role.RESUMABLE)


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
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read the settings in {path}: {error}.") from None
    try:
        settings = read_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} is not valid YAML: {error}.") from None
    if settings is None:
        return {}
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ValueError(f"{path} must contain settings as 'name: value' lines.")
    if isinstance(settings.get("collapse"), dict):
        settings["collapse"] = older_names.by_present_names(settings["collapse"], older_names.COLLAPSE)
    return older_names.by_present_names(settings)


def read_yaml(text: str) -> Any:
    """What a text says in YAML, with 1e-3 read as a number. Raises ValueError, with the reason alone, for no YAML."""
    import yaml

    try:
        return _as_number(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def read_options(given: Sequence[str]) -> dict[str, Any]:
    """``name=value`` words as a mapping, the values read as YAML.

    Raises:
        ValueError: if a word is not of that form, or a name is given twice.
    """
    options: dict[str, Any] = {}
    for word in given:
        name, equals, text = word.partition("=")
        name = name.strip()
        if not equals or not name.isidentifier():
            raise ValueError(f"Set TRL's options as name=value, such as top_p=0.9, not {word!r}.")
        if name in options:
            raise ValueError(f"TRL's {name} is set twice: give it once.")
        try:
            options[name] = read_yaml(text)
        except ValueError:
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
    fields = {*RunConfig.model_fields, *EvalConfig.model_fields, *CollapseConfig.model_fields}
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
