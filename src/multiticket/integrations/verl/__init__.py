"""verl: an actor in which only a ticket's values train. See docs/verl.md.

Importing this replaces verl's FSDP2 engine of language models by one that attaches a mask where the model's settings
ask for it, and is verl's own everywhere else: name it in ``actor_rollout_ref.model.external_lib``.
"""

from __future__ import annotations

from multiticket.integrations.verl.engine import replace_engines

replace_engines()
