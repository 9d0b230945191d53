"""What a training step costs, in time and memory, for each way of training: measured side by side.

Read `measure.py` first (how processes take turns), then `timed_process.py` (what one of them does), `timed_arms.py`
(what is compared, and that it is comparable), `operations.py` (what to expect), `peak_memory.py`, `spread.py`,
`step_cost.py`; `dispatch.py` measures Python alone.
"""
