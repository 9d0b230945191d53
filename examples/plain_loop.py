"""GRPO in a plain PyTorch loop, with a random 1 % of the model trained.

    python examples/plain_loop.py --steps 30

The whole algorithm on one screen: sample a group of completions for each problem, score them, take each one's
advantage over its group's mean, and follow the gradient of the log-probability. Simplified against
``multiticket train``: one batch is one forward pass, and nothing is evaluated, logged or resumed.
"""

import argparse

import torch

import multiticket as mt


def main(steps: int, problems: int, group: int, learning_rate: float, output: str) -> list[float]:
    torch.manual_seed(0)
    model, tokenizer = mt.bases.load("tiny-qwen2", dtype=torch.float32)
    task = mt.tasks.get("arithmetic")
    data = task.problems("train").shuffle(seed=0)

    mask = mt.Mask.random(model, density=0.01, seed=0)
    attachment = mt.attach(model, mask)
    optimizer = torch.optim.AdamW(attachment.parameters(), lr=learning_rate, weight_decay=0.01)

    rewards = []
    for step in range(steps):
        batch = data[step * problems : (step + 1) * problems]
        prompts = tokenizer(batch["prompt"], return_tensors="pt", padding=True, padding_side="left")
        prompts = {
            name: prompts[name].repeat_interleave(group, 0) for name in ("input_ids", "attention_mask")
        }

        # sample: (problems * group, prompt + completion) tokens
        tokens = model.generate(**prompts, do_sample=True, max_new_tokens=task.max_completion_tokens)
        width = prompts["input_ids"].shape[1]
        completions = tokens[:, width:]

        # score: the advantage is the reward minus the mean of its group
        texts = tokenizer.batch_decode(completions, skip_special_tokens=True)
        answers = [answer for answer in batch["answer"] for _ in range(group)]
        reward = torch.tensor([task.score(text, answer) for text, answer in zip(texts, answers, strict=True)])
        advantage = reward - reward.view(problems, group).mean(1).repeat_interleave(group)

        # learn: everything up to and including the first end-of-sequence token counts
        ended = (completions == tokenizer.eos_token_id).cumsum(1)
        loss_mask = (ended - (completions == tokenizer.eos_token_id).long()) == 0
        attention = torch.cat([prompts["attention_mask"], loss_mask.long()], 1)
        logits = model(input_ids=tokens, attention_mask=attention).logits[:, width - 1 : -1]
        log_probs = logits.log_softmax(-1).gather(2, completions.unsqueeze(2)).squeeze(2)
        loss = -(advantage[:, None] * log_probs * loss_mask).sum() / loss_mask.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(attachment.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

        rewards.append(float(reward.mean()))
        print(f"step {step + 1:3d}  reward {rewards[-1]:.3f}")

    attachment.ticket(task="arithmetic", steps=steps).save(output)
    print(f"{attachment.nnz:,} of {mask.numel:,} parameters trained, saved as {output}")
    return rewards


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--problems", type=int, default=16, help="problems a step")
    parser.add_argument("--group", type=int, default=16, help="completions a problem")
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--output", default="ticket.safetensors")
    main(**vars(parser.parse_args()))
