"""Causal language models of the Hugging Face format: loading, identity, hidden states, and what they cost."""

from __future__ import annotations

import gc
import json
import re
import warnings
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from tamis.core.digest import digest, file_digest
from tamis.core.errors import RequestError
from tamis.core.extras import need

DTYPES = ("float32", "bfloat16", "float16")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


@dataclass(frozen=True)
class LanguageModel:
    """A causal language model in eval mode, its tokenizer and its config.

    `path`: folder or hub id of the weights; `adapter`: folder of a PEFT adapter on top, or None. `model` is
    None when only the tokenizer was loaded. `dtype` is the name of the dtype the weights are in here.
    """

    path: str
    adapter: str | None
    config: Any
    tokenizer: Any
    dtype: str
    device: str
    model: Any
    trained: tuple[str, ...] = ()  # names of the adapter's parameters, as `model.named_parameters()` has them

    @property
    def backbone(self) -> Any:
        """The model without its LM head; its `last_hidden_state` is after the final norm."""
        causal = self.model.get_base_model() if self.adapter else self.model
        body = causal.base_model
        if body is causal:
            raise RequestError(
                f"{self.path}: {type(causal).__name__} does not separate its head from its body"
            )
        return body

    @property
    def width(self) -> int:
        """d of the last hidden state."""
        text = self.config.get_text_config()
        return int(getattr(text, "word_embed_proj_dim", None) or text.hidden_size)

    @cached_property
    def fingerprint(self) -> dict[str, str]:
        """Identity of the weights: contents of the files, or the commit of a hub repository."""
        found = {"weights": fingerprint(self.path, getattr(self.config, "_commit_hash", None))}
        if self.adapter:
            found["adapter"] = fingerprint(self.adapter, None)
        return found

    @cached_property
    def body_parameters(self) -> int:
        """Parameters without embeddings and LM head, counted on an empty copy; all experts of a mixture."""
        torch, transformers = need("torch", extra="lm"), need("transformers", extra="lm")
        with torch.device("meta"):
            model = self.model or transformers.AutoModelForCausalLM.from_config(self.config)
        table = {id(p) for m in model.modules() if isinstance(m, torch.nn.Embedding) for p in m.parameters()}
        head = model.get_output_embeddings()
        table |= {id(p) for p in head.parameters()} if head is not None else set()
        return sum(p.numel() for p in model.parameters() if id(p) not in table)

    @cached_property
    def parameters(self) -> int:
        """All parameters, embeddings and head included, shared ones once; counted on an empty copy."""
        torch, transformers = need("torch", extra="lm"), need("transformers", extra="lm")
        with torch.device("meta"):
            model = self.model or transformers.AutoModelForCausalLM.from_config(self.config)
        return sum(p.numel() for p in model.parameters())

    def forward_flops(self, length: float) -> float:
        """Floating-point operations of the body per token, at `length` tokens a row: two for each parameter,
        and 4 x layers x heads x head size for each of the (length + 1) / 2 tokens that one attends to. Left
        out: norms, rotary embeddings, activations, softmax (about 1 %); sliding windows are not deducted."""
        text = self.config.get_text_config()
        heads = text.num_attention_heads
        size = getattr(text, "head_dim", None) or text.hidden_size // heads
        attended = (length + 1) / 2
        return float(2 * self.body_parameters + 4 * text.num_hidden_layers * heads * size * attended)

    @property
    def head_flops(self) -> float:
        """Floating-point operations of the LM head for one token."""
        return 2.0 * self.width * int(self.config.get_text_config().vocab_size)

    @cached_property
    def executors(self) -> dict[int | None, Any]:
        """Executors of this model by their token budget, so that each is checked once (see packing.py)."""
        return {}

    @cached_property
    def learned_positions(self) -> int | None:
        """Most tokens of a row when positions come from a learned table, which ends there; None otherwise."""
        torch = need("torch", extra="lm")
        text = self.config.get_text_config()
        limit = getattr(text, "max_position_embeddings", None)
        inputs = self.model.get_input_embeddings()
        for module in self.model.modules():
            table = isinstance(module, torch.nn.Embedding) and module is not inputs
            if table and limit and limit <= module.num_embeddings <= limit + 2:
                return int(limit)
        return None

    def check_positions(self, max_tokens: int) -> None:
        """Raise RequestError when rows may be longer than the model's table of positions."""
        limit = self.learned_positions
        if limit is not None and max_tokens > limit:
            raise RequestError(
                f"{self.path}: its table of positions ends at {limit} tokens, fewer than --max-tokens "
                f"{max_tokens}; give --max-tokens {limit}"
            )


def load_model(
    path: str,
    dtype: str = "auto",
    device: str = "auto",
    remote_code: bool = False,
    tokenizer_only: bool = False,
    base: str | None = None,
) -> LanguageModel:
    """Load a folder or a hub id: a causal language model, or a PEFT adapter with the base it names.

    `dtype` auto: the one of the checkpoint, except that float16 becomes float32 on a CPU, which has no fast
    float16. `device` auto: the first CUDA device, else the CPU. Code of the repository is run only with
    `remote_code`. Raises RequestError for everything that cannot be loaded whole. The model is the caller's
    own; a tokenizer alone is shared as long as its files have not changed. `base`: the base of an adapter, in
    place of the one that it names.
    """
    device = choose_device(device)
    path, adapter = _split_adapter(path, base)
    if tokenizer_only:
        return _described(path, adapter, dtype, device, remote_code, _changes(path, adapter))
    return _load(path, adapter, dtype, device, remote_code, tokenizer_only=False)


def shared_model(
    path: str, dtype: str, device: str, remote_code: bool, base: str | None = None
) -> LanguageModel:
    """`load_model` for those who only read the model: the last one is kept while its files do not change."""
    device = choose_device(device)
    path, adapter = _split_adapter(path, base)
    asked = (path, adapter, dtype, device, remote_code, _changes(path, adapter))
    if [asked] != _LAST:  # the one before goes first, for there may not be room for both
        _whole.cache_clear()
        gc.collect()
        _LAST[:] = [asked]
    return _whole(*asked)


def describe_model(path: str, dtype: str, device: str, remote_code: bool) -> LanguageModel:
    """What a config alone tells of a model: `path` is a folder that need not hold weights or a tokenizer, a
    config.json, or a hub id. `model` is None, and `tokenizer` too when there is none."""
    device = choose_device(device)
    given = Path(path).expanduser()
    if given.is_file():
        config = _loaded(need("transformers", extra="lm").AutoConfig, str(given), remote_code)
        return LanguageModel(path, None, config, None, _choose_dtype(dtype, config, device), device, None)
    path, adapter = _split_adapter(path)
    if not given.is_dir() or has_tokenizer(given):
        return load_model(str(given), dtype, device, remote_code, tokenizer_only=True)
    config = _loaded(need("transformers", extra="lm").AutoConfig, path, remote_code)
    return LanguageModel(path, adapter, config, None, _choose_dtype(dtype, config, device), device, None)


def has_tokenizer(folder: Path) -> bool:
    """Whether a model's folder holds a tokenizer."""
    return any(folder.glob("*token*")) or any(folder.glob("vocab*"))


def _changes(path: str, adapter: str | None) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of every file in the folders of a model."""
    folders = [Path(folder) for folder in (path, adapter) if folder and Path(folder).is_dir()]
    files = sorted(file for folder in folders for file in folder.iterdir() if file.is_file())
    return tuple((str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files)


@lru_cache(maxsize=8)
def _described(
    path: str, adapter: str | None, dtype: str, device: str, remote_code: bool, changes: tuple[Any, ...]
) -> LanguageModel:
    return _load(path, adapter, dtype, device, remote_code, tokenizer_only=True)


_LAST: list[tuple[Any, ...]] = []


@lru_cache(maxsize=1)  # weights are large: only the last model is kept
def _whole(
    path: str, adapter: str | None, dtype: str, device: str, remote_code: bool, changes: tuple[Any, ...]
) -> LanguageModel:
    return _load(path, adapter, dtype, device, remote_code, tokenizer_only=False)


def _load(
    path: str, adapter: str | None, dtype: str, device: str, remote_code: bool, tokenizer_only: bool
) -> LanguageModel:
    transformers = need("transformers", extra="lm")
    config = _loaded(transformers.AutoConfig, path, remote_code)
    tokenizer = _tokenizer(path, adapter, remote_code)
    name = _choose_dtype(dtype, config, device)
    model, trained = (None, ()) if tokenizer_only else _weights(path, adapter, name, device, remote_code)
    return LanguageModel(path, adapter, config, tokenizer, name, device, model, trained)


def choose_device(device: str) -> str:
    """`auto`, `cpu`, `cuda`, `cuda:i` or `mps` as a device that is here; raises RequestError otherwise."""
    torch = need("torch", extra="lm")
    if device == "auto":
        return "cuda:0" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", device):
        raise RequestError(f"--device {device!r}: expected auto, cpu, cuda, cuda:1 or mps")
    if device.startswith("cuda"):
        index = int(device.partition(":")[2] or 0)
        count = torch.cuda.device_count()
        if index >= count:
            raise RequestError(f"--device {device}: {count} CUDA devices are visible here")
        return f"cuda:{index}"
    if device == "mps" and not torch.backends.mps.is_available():
        raise RequestError("--device mps: not available here")
    return device


def fingerprint(path: str, commit: str | None = None) -> str:
    """Digest of the config and weights in a folder, or of a hub id with its commit.

    File contents are read once in a process, as long as size and time of change stay the same.
    """
    folder = Path(path)
    if not folder.is_dir():
        if commit is None:
            raise RequestError(
                f"{path}: the commit of the hub repository is not known; download it to a folder"
            )
        return digest({"repository": path, "commit": commit})
    files = weight_files(folder)
    configs = [folder / name for name in ("config.json", "adapter_config.json") if (folder / name).is_file()]
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return digest(
        {
            "config": [json.loads(file.read_text()) for file in configs],
            "weights": [_file_digest(*stat) for stat in stats],
        }
    )


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights, safetensors first; raises RequestError when there are none."""
    for pattern in (
        "model*.safetensors",
        "pytorch_model*.bin",
        "adapter_model.safetensors",
        "adapter_model.bin",
    ):
        if found := sorted(folder.glob(pattern)):
            return found
    raise RequestError(f"{folder}: no weights; expected model*.safetensors or pytorch_model*.bin")


def last_hidden_state(backbone: Any, ids: Any, **inputs: Any) -> Any:
    """Hidden states (b, L, d) after the final norm, from ids (b, L); no cache, no other layers, no logits."""
    # use_cache=False is not only thrift: with a cache, reset positions are no longer taken for packed rows.
    return backbone(input_ids=ids, use_cache=False, **inputs).last_hidden_state


@lru_cache(maxsize=256)
def _file_digest(path: str, size: int, changed: int) -> str:
    return file_digest(Path(path))


def _split_adapter(path: str, base: str | None = None) -> tuple[str, str | None]:
    """Path of the weights, and the adapter's folder when `path` is one; `base` stands in for the one that the
    adapter names."""
    folder = Path(path).expanduser()
    if not folder.exists():
        if not _HUB_ID.fullmatch(path) or path.startswith("."):
            raise RequestError(f"--model {path}: no such folder")
        return path, None
    if not folder.is_dir():
        raise RequestError(f"--model {path}: this is a file; give the folder it is in")
    description = folder / "adapter_config.json"
    if not description.exists():
        if not (folder / "config.json").exists():
            raise RequestError(f"--model {path}: no config.json in this folder, so it holds no model")
        return str(folder), None
    named = json.loads(description.read_text()).get("base_model_name_or_path")
    if base is not None:
        return _split_adapter(base)[0], str(folder)
    if not named:
        raise RequestError(f"{description}: it does not name its base model (base_model_name_or_path)")
    beside = folder / named
    return str(beside if not Path(named).exists() and beside.exists() else named), str(folder)


def _loaded(kind: Any, path: str, remote_code: bool, **options: Any) -> Any:
    """`kind.from_pretrained` without its progress bars, its errors in our words."""
    logging = need("transformers", extra="lm").utils.logging
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        return kind.from_pretrained(path, trust_remote_code=remote_code, **options)
    except (OSError, ValueError, ImportError, KeyError) as error:
        if "trust_remote_code" in str(error):
            raise RequestError(
                f"{path}: this repository needs code of its own to run; read it, and allow it "
                "with --trust-remote-code"
            ) from error
        where = "" if Path(path).is_dir() else " (no such folder here, and not in the cache or on the hub)"
        raise RequestError(f"{path}{where}: {type(error).__name__}: {error}") from error
    finally:
        if shown:
            logging.enable_progress_bar()


def _tokenizer(path: str, adapter: str | None, remote_code: bool) -> Any:
    auto = need("transformers", extra="lm").AutoTokenizer
    source = adapter if adapter and (Path(adapter) / "tokenizer_config.json").exists() else path
    folder = Path(source)
    if folder.is_dir() and not has_tokenizer(folder):
        raise RequestError(f"{source}: no tokenizer in this folder; save it there beside the model")
    return _loaded(auto, source, remote_code)


def _choose_dtype(dtype: str, config: Any, device: str) -> str:
    if dtype in DTYPES:
        return dtype
    if dtype != "auto":
        raise RequestError(f"--dtype {dtype!r}: expected auto, {', '.join(DTYPES)}")
    stored = str(config.get_text_config().dtype or config.dtype or "float32").removeprefix("torch.")
    if stored not in DTYPES or (stored == "float16" and device == "cpu"):
        return "float32"
    return stored


def _weights(
    path: str, adapter: str | None, dtype: str, device: str, remote_code: bool
) -> tuple[Any, tuple[str, ...]]:
    """The model, frozen, and the names of the parameters that training its adapter would change."""
    torch, transformers = need("torch", extra="lm"), need("transformers", extra="lm")
    model, loading = _loaded(
        transformers.AutoModelForCausalLM,
        path,
        remote_code,
        dtype=getattr(torch, dtype),
        output_loading_info=True,
    )
    missing = sorted(key for key in loading["missing_keys"])
    if missing:
        raise RequestError(f"{path}: {len(missing)} tensors are missing from the weights, first {missing[0]}")
    if adapter:
        peft = need("peft", extra="lm")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # between versions of these two libraries
                model = peft.PeftModel.from_pretrained(model, adapter, is_trainable=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise RequestError(f"{adapter}: the adapter does not fit {path}: {error}") from error
    trained = tuple(name for name, p in model.named_parameters() if p.requires_grad) if adapter else ()
    model.eval().requires_grad_(False)
    return model.to(device), trained
