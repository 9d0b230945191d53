"""What does a sparse step cost? The report's section, from what ``multiticket bench`` measured.

    multiticket bench --device cpu --rounds 20 --json docs/results/step_cost.json
    multiticket bench --device cuda --json docs/results/step_cost_gpu_NAME.json     # where there is a GPU
    python paper/step_cost_section.py

Takes a second. Prints ratios with intervals, for the CPU and for every GPU that has a file.
"""

from __future__ import annotations

from pathlib import Path

from multiticket.runs.folder import read_json
from program import finish, program_parser, run_program
from step_cost_page import read_bench, step_cost_section

COMMAND = "python paper/step_cost_section.py"


def main() -> None:
    parser = program_parser(__doc__ or "", "step_cost")
    parser.add_argument(
        "--results", type=Path, default=Path("docs/results"), help="the folder of measurements"
    )
    options = parser.parse_args()
    gpus = sorted(options.results.glob("step_cost_gpu_*.json"))
    files = [options.results / "step_cost.json", *(file for file in gpus if "sweep" not in read_json(file))]
    finish(step_cost_section([read_bench(file) for file in files], COMMAND), options.section)


if __name__ == "__main__":
    run_program(main)
