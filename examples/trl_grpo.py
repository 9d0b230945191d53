"""TRL's own GRPOTrainer, unchanged, with a random 1 % of the model trained.

    python examples/trl_grpo.py --steps 20

Attach, then hand the model to the trainer: only the values require a gradient, so its optimiser, clipping,
accumulation and logging are about them alone.
"""

import argparse

from trl import GRPOConfig, GRPOTrainer

import multiticket as mt


def main(steps: int, rollouts: int, learning_rate: float, output: str) -> list[float]:
    model, tokenizer = mt.bases.load("tiny-qwen2", dtype="float32")
    task = mt.tasks.get("arithmetic")
    attachment = mt.attach(model, mt.Mask.random(model, density=0.01, seed=0))

    def reward(completions: list[str], answer: list[str], **_: object) -> list[float]:
        return [task.score(completion, a) for completion, a in zip(completions, answer, strict=True)]

    config = GRPOConfig(
        output_dir="trl-run",
        max_steps=steps,
        learning_rate=learning_rate,
        lr_scheduler_type="constant",
        per_device_train_batch_size=rollouts,
        num_generations=16,
        max_completion_length=task.max_completion_tokens,
        scale_rewards="none",
        gradient_checkpointing=False,
        bf16=False,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config,
        train_dataset=task.problems("train"),
        processing_class=tokenizer,
    )
    trainer.train()

    attachment.ticket(task="arithmetic", steps=steps).save(output)
    print(f"{attachment.nnz:,} parameters trained, saved as {output}")
    return [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rollouts", type=int, default=256, help="completions a step")
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--output", default="ticket.safetensors")
    main(**vars(parser.parse_args()))
