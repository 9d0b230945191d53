"""Ways to reach a vLLM engine: over HTTP, or in the same process."""

from __future__ import annotations

from typing import Any


class HttpEngine:
    """A ``vllm serve`` with ``VLLM_SERVER_DEV_MODE=1``, which has the weight-update routes."""

    def __init__(self, url: str, api_key: str | None = None, timeout: float = 300.0) -> None:
        """``url``: such as ``http://127.0.0.1:8000``; ``timeout``: seconds for one request."""
        import requests

        self.url = url.rstrip("/")
        self.timeout = timeout
        self._session = requests.Session()
        if api_key:
            self._session.headers["Authorization"] = f"Bearer {api_key}"

    def pause(self) -> None:
        self._post("pause?mode=wait&clear_cache=true")

    def resume(self) -> None:
        self._post("resume")

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        self._post("init_weight_transfer_engine", {"init_info": init_info})

    def start_weight_update(self) -> None:
        self._post("start_weight_update")

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._post("update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._post("finish_weight_update", {"weight_version": weight_version} if weight_version else None)

    def _post(self, path: str, body: dict[str, Any] | None = None) -> None:
        response = self._session.post(f"{self.url}/{path}", json=body, timeout=self.timeout)
        if not response.ok:
            raise ValueError(f"The engine refused {path.split('?')[0]}: {_sentence(response)}")


def _sentence(response: Any) -> str:
    """vLLM's own message, without the names of the calls it came through."""
    try:
        told = response.json()
    except ValueError:
        return f"HTTP {response.status_code}"
    error = told.get("error", told) if isinstance(told, dict) else told
    text = str(error.get("message", error) if isinstance(error, dict) else error)
    return text.rpartition("method failed: ")[2]


class LocalEngine:
    """A `vllm.LLM` in this process. Nothing generates while its caller syncs, so pausing empties the cache alone."""

    def __init__(self, llm: Any) -> None:
        self.llm = llm

    def pause(self) -> None:
        if not self.llm.reset_prefix_cache():
            raise ValueError("The engine could not empty its prefix cache: a request is still running.")

    def resume(self) -> None:
        """Nothing waits."""

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        self.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info=init_info))

    def start_weight_update(self) -> None:
        self.llm.start_weight_update()

    def update_weights(self, update_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        self.llm.update_weights(WeightTransferUpdateRequest(update_info=update_info))

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self.llm.finish_weight_update()
