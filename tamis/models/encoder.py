"""Sentence encoders of the sentence-transformers format: identity, tokens, vectors, and what they cost."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from tamis.core.digest import digest, known_file_digest
from tamis.core.errors import RequestError
from tamis.core.extras import need
from tamis.models.lm import DTYPES, choose_device

CPU_BATCH_TOKENS = 4096
CUDA_BATCH_TOKENS = 65536
_NO_LIMIT = 1_000_000  # tokenizers without a limit say a huge number
_NEEDLESS = ("onnx/*", "openvino/*", "*.onnx", "*.h5", "*.msgpack", "*.ot", "rust_model*")
_IDENTITY = ("*.json", "*.safetensors", "*.txt", "*.model", "*.py")


class SentenceEncoder:
    """One encoder in a folder, or under a hub id whose files are brought to the cache first.

    `max_tokens`: a limit below the encoder's own, or 0. Weights are loaded when the first text is encoded;
    identity, width, limit and tokens are known without them. Raises RequestError for what cannot be used.
    """

    def __init__(
        self, path: str, dtype: str, device: str, remote_code: bool = False, max_tokens: int = 0
    ) -> None:
        self.path = path
        self.folder = _folder(path)
        self.remote_code = remote_code
        self.device = choose_device(device)
        self.modules = self._module_folders()
        self.config: dict[str, Any] = self._json(self.modules[0] / "config.json")
        self.dtype = _choose_dtype(dtype, self.config, self.device)
        self.limit = self._limit(max_tokens)
        self.failed: dict[int, str] = {}

    @cached_property
    def fingerprint(self) -> str:
        """Digest of all the files that decide the vectors; not of where they lie."""
        files = {file for folder in self.modules for pattern in _IDENTITY for file in folder.glob(pattern)}
        files.add(self.folder / "modules.json")
        for folder in self.modules:  # one module may have older files of weights than another
            if not any(folder.glob("*.safetensors")):
                files |= set(folder.glob("*.bin"))
        return digest({str(file.relative_to(self.folder)): known_file_digest(file) for file in sorted(files)})

    @cached_property
    def tokenizer(self) -> Any:
        transformers = need("transformers", extra="embed")
        try:
            return transformers.AutoTokenizer.from_pretrained(
                self.modules[0], trust_remote_code=self.remote_code
            )
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise _unusable(self.path, error) from error

    @property
    def width(self) -> int:
        """d of the vectors: what the last module that changes it gives out."""
        for folder in reversed(self.modules):
            found = self._json(folder / "config.json") if (folder / "config.json").exists() else {}
            for key in ("out_features", "embedding_dimension", "word_embedding_dimension", "hidden_size"):
                if key in found:
                    return int(found[key]) * _poolings(found)
        return int(self._model.get_embedding_dimension())

    @cached_property
    def body_parameters(self) -> int:
        """Parameters of the transformer without its embeddings, counted on an empty copy."""
        torch, transformers = need("torch", extra="embed"), need("transformers", extra="embed")
        config = transformers.AutoConfig.from_pretrained(self.modules[0], trust_remote_code=self.remote_code)
        with torch.device("meta"):
            model = transformers.AutoModel.from_config(config, trust_remote_code=self.remote_code)
        model = model.encoder if config.is_encoder_decoder else model
        table = {id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
        return sum(p.numel() for p in model.parameters() if id(p) not in table)

    def forward_flops(self, length: float) -> float:
        """Floating-point operations of a token, at `length` tokens a row, each of which attends to all: two
        for each parameter and 4 x layers x width x length."""
        layers = self.config.get("num_hidden_layers") or self.config.get("num_layers") or 0
        width = self.config.get("hidden_size") or self.config.get("d_model") or 0
        return float(2 * self.body_parameters + 4 * layers * width * length)

    def count(self, texts: Sequence[str]) -> np.ndarray:
        """Tokens of every text (b,) int64 before truncation, special tokens included."""
        if not texts:
            return np.zeros(0, np.int64)
        ids = self.tokenizer(list(texts), truncation=False, verbose=False)["input_ids"]
        return np.array([len(row) for row in ids], dtype=np.int64)

    def encode(
        self,
        texts: Sequence[str],
        prefix: str,
        lengths: np.ndarray,
        batch_tokens: int | None = None,
        advance: Callable[[int], None] = lambda tokens: None,
    ) -> np.ndarray:
        """Vectors (b, d) float32 of `prefix` + text, as the model gives them.

        `lengths` (b,): tokens of each after truncation; texts of like length share a batch of at most
        `batch_tokens` tokens, padding included. A text that does not fit into memory alone is NaN, and its
        reason is in `failed`.
        """
        torch = need("torch", extra="embed")
        self.failed = {}
        out = np.full((len(texts), self.width), np.nan, np.float32)
        budget = batch_tokens or (CPU_BATCH_TOKENS if self.device == "cpu" else CUDA_BATCH_TOKENS)
        waiting = deque(batches_by_length(lengths, np.arange(len(texts)), budget))
        while waiting:
            rows = waiting.popleft()
            try:
                out[rows] = self._vectors([texts[i] for i in rows], prefix)
            except torch.OutOfMemoryError as error:
                torch.cuda.empty_cache()
                if len(rows) == 1:
                    row = int(rows[0])
                    self.failed[row] = f"{lengths[row]} tokens do not fit into memory: {error}"
                    continue
                budget = max(1, int(lengths[rows].max()) * len(rows) // 2)
                left = np.concatenate([rows, *waiting])
                waiting = deque(batches_by_length(lengths, left, budget))
                continue
            advance(int(lengths[rows].sum()))
        return out

    def _vectors(self, texts: list[str], prefix: str) -> np.ndarray:
        # An empty prompt is given too: without one, the prompt that a model has by default would be put in.
        found: np.ndarray = self._model.encode(
            texts, prompt=prefix, batch_size=len(texts), show_progress_bar=False, convert_to_numpy=True
        )
        return found.astype(np.float32)

    @cached_property
    def _model(self) -> Any:
        return _loaded(
            str(self.folder), self.dtype, self.device, self.remote_code, self.limit, self.fingerprint
        )

    def _module_folders(self) -> list[Path]:
        listed = self.folder / "modules.json"
        if not listed.exists():
            raise RequestError(
                f"{self.path}: no modules.json, so this is not a sentence-transformers model; "
                "wrap and save it with that library first, which decides how tokens are pooled"
            )
        modules = sorted(json.loads(listed.read_text(encoding="utf-8")), key=lambda module: module["idx"])
        folders = [self.folder / module["path"] for module in modules]
        if not folders or not (folders[0] / "config.json").exists():
            raise RequestError(f"{self.path}: the first module of modules.json has no config.json")
        return folders

    def _limit(self, max_tokens: int) -> int:
        """Tokens after which the encoder cuts a text: its own number, or a smaller one that was asked for."""
        places = (
            ("sentence_bert_config.json", "max_seq_length"),
            ("tokenizer_config.json", "model_max_length"),
            ("config.json", "max_position_embeddings"),
        )
        told = [
            (name, int(self._json(folder / name).get(key) or 0))
            for folder in dict.fromkeys((self.modules[0], self.folder))
            for name, key in places
            if (folder / name).exists()
        ]
        told = [(name, number) for name, number in told if 0 < number < _NO_LIMIT]
        # The library's own file decides; without a number there, the smallest of the others.
        known = [number for name, number in told if name == places[0][0]] or sorted(n for _, n in told)
        if not known and not max_tokens:
            raise RequestError(f"{self.path}: it names no longest text; give --set embed.max_tokens=N")
        if known and max_tokens > known[0]:
            raise RequestError(
                f"embed.max_tokens={max_tokens}: {self.path} takes at most {known[0]} tokens; "
                "what is longer is truncated and counted"
            )
        return max_tokens or known[0]

    def _json(self, path: Path) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise RequestError(f"{path}: not JSON: {error}") from error
        return found


def _poolings(config: dict[str, Any]) -> int:
    """How many pooled vectors a pooling module puts one after another."""
    mode = config.get("pooling_mode")
    flags = [value for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    return max(1, len(mode) if isinstance(mode, list) else len(flags))


def batches_by_length(lengths: np.ndarray, rows: np.ndarray, budget: int) -> list[np.ndarray]:
    """`rows` longest first, cut so that rows x longest stays within `budget` tokens; one row at least."""
    ordered = rows[np.argsort(-lengths[rows], kind="stable")]
    found, start = [], 0
    while start < len(ordered):
        size = max(1, budget // max(int(lengths[ordered[start]]), 1))
        found.append(ordered[start : start + size])
        start += size
    return found


@lru_cache(maxsize=1)  # weights are large: only the last encoder is kept
def _loaded(folder: str, dtype: str, device: str, remote_code: bool, limit: int, fingerprint: str) -> Any:
    torch = need("torch", extra="embed")
    library = need("sentence_transformers", extra="embed")
    logging = need("transformers", extra="embed").utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model = library.SentenceTransformer(
            folder,
            device=device,
            trust_remote_code=remote_code,
            local_files_only=True,
            model_kwargs={"dtype": getattr(torch, dtype)},
        )
    except (OSError, ValueError, ImportError, KeyError, RuntimeError) as error:
        raise _unusable(folder, error) from error
    finally:
        if shown:
            logging.enable_progress_bar()
    model.max_seq_length = limit
    return model.to(getattr(torch, dtype)).eval().requires_grad_(False)


def _folder(path: str) -> Path:
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    if folder.exists() or path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise RequestError(f"embed.encoder={path}: no such folder")
    hub = need("huggingface_hub", extra="embed")
    try:
        return Path(hub.snapshot_download(path, ignore_patterns=list(_NEEDLESS)))
    except Exception as error:  # the hub's client raises many kinds, none of them ours to handle
        raise RequestError(
            f"embed.encoder={path}: no such folder here, and not in the cache or on the hub: {error}"
        ) from error


def _unusable(path: str, error: Exception) -> RequestError:
    if "trust_remote_code" in str(error):
        return RequestError(
            f"{path}: this encoder needs code of its own to run; read it, and allow it with "
            "--trust-remote-code"
        )
    return RequestError(f"{path}: {type(error).__name__}: {error}")


def _choose_dtype(dtype: str, config: dict[str, Any], device: str) -> str:
    if dtype in DTYPES:
        return dtype
    if dtype != "auto":
        raise RequestError(f"--dtype {dtype!r}: expected auto, {', '.join(DTYPES)}")
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return stored if stored in DTYPES and (stored, device) != ("float16", "cpu") else "float32"
