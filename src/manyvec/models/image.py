"""Encoders that read images: ColPali's family for pages, CLIP and SigLIP for pictures and captions.

An image becomes a vector for each patch, and `spans` say where in the grid of patches it lies: (row, column), or
(-1, -1) for tokens that are no patch of the picture.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from manyvec.errors import EncoderError, InputError, ShapeError, require
from manyvec.models.text import Spans, batches_of, check_texts, weight_samples
from manyvec.vectors.batch import TokenBatch, offsets_of

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image


class Embedded(NamedTuple):
    """Token vectors of one text or image, (n_tokens, dim), and their spans."""

    vectors: NDArray[np.float32]
    spans: Spans


class ImageEncoder(ABC):
    """A model that reads images and texts, as an `Encoder`. May be shared by threads.

    Args:
        model: gives token vectors of what `processor` prepares.
        name: what `load_encoder` finds it by; indexes remember it.
        batch_tokens: tokens per forward pass; a single image may have more.
    """

    def __init__(self, model: torch.nn.Module, processor: Any, *, name: str, batch_tokens: int | None = None) -> None:
        self.name = name
        self.model = model.eval()
        self.processor = processor
        self.batch_tokens = batch_tokens or (4096 if self.device == "cpu" else 32768)
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, dim {self.dim}, on {self.device})"

    @property
    def device(self) -> str:
        return str(next(self.model.parameters()).device)

    @cached_property
    def dim(self) -> int:
        return self.encode_queries(["dim"]).dim

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the tokenizer, what is done to pixels, the prompts, and `weight_samples`."""
        digest = hashlib.blake2b(type(self).__name__.encode(), digest_size=16)
        processor = self.processor
        tokenizer = processor.tokenizer.get_vocab()
        prompts = [getattr(processor, name, None) for name in ("query_prefix", "visual_prompt_prefix", "image_seq_len")]
        pixels = json.loads(processor.image_processor.to_json_string())
        # How the class is called differs between machines with and without torchvision.
        pixels = {name: value for name, value in pixels.items() if not name.endswith(("_type", "_class"))}
        digest.update(json.dumps([tokenizer, prompts, pixels], sort_keys=True).encode())
        for sample in weight_samples(self.model):
            digest.update(sample)
        return digest.hexdigest()

    @property
    def crops_images(self) -> bool:
        """Whether only the middle square of an image is looked at, as CLIP does."""
        return bool(getattr(self.processor.image_processor, "do_center_crop", False))

    def encode_images(self, images: Sequence[str | Path | bytes | Image]) -> TokenBatch:
        """Token vectors of images, in their order: files, the bytes of one, or images that PIL has opened.

        Raises:
            InputError: an image cannot be read; the message says which.
        """
        sizes = [image_header(image, f"image {i}")[1] for i, image in enumerate(images)]
        counts = [self._n_tokens(height, width) for width, height in sizes]
        found: list[Embedded | None] = [None] * len(sizes)
        for batch in batches_of(counts, self.batch_tokens):
            pixels = [read_image(images[i], f"image {i}") for i in batch]
            with self._lock:
                for i, embedded in zip(batch, self._embed_images(pixels), strict=True):
                    found[i] = embedded
        return self._joined(found)

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        """See `Encoder`."""
        check_texts(queries, self.name)
        found: list[Embedded | None] = [None] * len(queries)
        # A token is a character or more.
        for batch in batches_of([len(query) + 32 for query in queries], self.batch_tokens):
            with self._lock:
                for i, embedded in zip(batch, self._embed_texts([queries[i] for i in batch]), strict=True):
                    found[i] = embedded
        return self._joined(found)

    @abstractmethod
    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        """See `Encoder`."""

    @abstractmethod
    def _n_tokens(self, height: int, width: int) -> int:
        """Tokens that an image of this size becomes, or more."""

    @abstractmethod
    def _embed_images(self, images: list[Image]) -> list[Embedded]: ...

    @abstractmethod
    def _embed_texts(self, texts: list[str]) -> list[Embedded]: ...

    def _joined(self, found: Sequence[Embedded | None]) -> TokenBatch:
        parts = [embedded for embedded in found if embedded is not None]
        if not parts:
            return TokenBatch(np.empty((0, self.dim), np.float32), offsets_of([]), np.empty((0, 2), np.int32))
        vectors = np.concatenate([part.vectors for part in parts])
        spans = np.concatenate([part.spans for part in parts])
        try:
            return TokenBatch(vectors, offsets_of([len(part.vectors) for part in parts]), spans, allow_empty=True)
        except ShapeError as error:
            raise EncoderError(f"{self.name} gave vectors that cannot be used: {error}") from error


class PageEncoder(ImageEncoder):
    """ColPali, ColQwen2, ColQwen2.5, ColModernVBert: pages are images, queries are texts.

    Args:
        is_adapted: adapters trained with colpali-engine, whose Qwen prompt does not end in a line break.
    """

    def __init__(self, model: torch.nn.Module, processor: Any, *, is_adapted: bool = False, **options: Any) -> None:
        super().__init__(model, processor, **options)
        self._is_adapted = is_adapted

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        """Refused: these models read pages as images, and text only as queries."""
        raise InputError(
            f"{self.name} reads documents as images: use encode_images. For documents that are text load a text model "
            "(see `manyvec models`)"
        )

    def _n_tokens(self, height: int, width: int) -> int:
        counts = self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)])["num_image_tokens"]
        return int(counts[0])

    def _embed_images(self, images: list[Image]) -> list[Embedded]:
        inputs = self.processor.process_images(images=images)
        grids = inputs.get("image_grid_thw")
        vectors, attention = self._forward(inputs)
        found = []
        for i, (ids, row, mask) in enumerate(zip(inputs["input_ids"], vectors, attention, strict=True)):
            grid = None if grids is None else (grids[i, 1:] // self.processor.image_processor.merge_size).tolist()
            found.append(Embedded(row[mask], self._grid_spans(ids.numpy()[mask], grid)))
        return found

    def _embed_texts(self, texts: list[str]) -> list[Embedded]:
        tokenizer = self.processor.tokenizer
        head, tail = self.processor.query_prefix, self.processor.query_augmentation_token * 10
        is_colpali = hasattr(self.processor, "image_seq_length")
        if is_colpali:
            head, tail = tokenizer.bos_token + head, tail + "\n"
        if "image_grid_thw" in self.processor.model_input_names and not self._is_adapted:  # ColQwen2
            tail += "\n"
        whole = [f"{head}{text}{tail}" for text in texts]
        options = {"padding": "longest", "return_tensors": "pt", "return_offsets_mapping": True}
        # Without types PaliGemma reads a padded batch causally, and a query's vectors would depend on its neighbours.
        inputs = tokenizer(whole, return_token_type_ids=is_colpali, **options)
        offsets = inputs.pop("offset_mapping").numpy().astype(np.int32) - len(head)
        vectors, attention = self._forward(inputs)
        found = []
        for text, row, spans, mask in zip(texts, vectors, offsets, attention, strict=True):
            own = spans[mask]
            own[(own[:, 0] < 0) | (own[:, 1] > len(text)) | (own[:, 0] == own[:, 1])] = -1
            found.append(Embedded(row[mask], own))
        return found

    def _forward(self, inputs: Any) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """(n, n_tokens, dim) unit vectors, and which of them are no padding."""
        import torch

        kept = {name: value.to(self.device) for name, value in inputs.items() if name != "labels"}
        if "pixel_values" in kept:
            kept["pixel_values"] = kept["pixel_values"].to(next(self.model.parameters()).dtype)
        with torch.inference_mode():
            output = self.model(**kept)
        embeddings = output if isinstance(output, torch.Tensor) else output.embeddings
        return embeddings.float().cpu().numpy(), inputs["attention_mask"].bool().numpy()

    def _grid_spans(self, ids: NDArray[np.int64], grid: Sequence[int] | None) -> Spans:
        """(row, column) of each token's patch. `grid` is (rows, columns) where the processor says it."""
        spans = np.full((len(ids), 2), -1, np.int32)
        positions = np.flatnonzero(ids == self.processor.image_token_id)
        if grid is None and hasattr(self.processor, "image_seq_len"):
            return self._tile_spans(ids, positions, spans)
        rows, columns = grid or [math.isqrt(len(positions))] * 2
        if rows * columns == len(positions):
            spans[positions] = np.indices((rows, columns), np.int32).reshape(2, -1).T
        return spans

    def _tile_spans(self, ids: NDArray[np.int64], positions: NDArray[np.int64], spans: Spans) -> Spans:
        """ColModernVBert cuts a large page into tiles, `<row_2_col_1>` and so on, and adds the whole page, small."""
        n_patches = self.processor.image_seq_len
        side = math.isqrt(n_patches)
        tiles = positions.reshape(-1, n_patches)
        inside = np.indices((side, side), np.int32).reshape(2, -1).T
        for tile in tiles:
            # The tile's name stands before it; it may be one token or several.
            name = self.processor.tokenizer.decode(ids[max(0, tile[0] - 12) : tile[0]])
            cell = re.search(r"<row_(\d+)_col_(\d+)>$", name.replace(" ", ""))
            if cell:
                spans[tile] = inside + side * (np.array(cell.groups(), np.int32) - 1)
            elif len(tiles) == 1:
                spans[tile] = inside
        return spans


class ImageTextEncoder(ImageEncoder):
    """CLIP and SigLIP read token by token, as FILIP does: patches and words through the model's own projections.

    Images and texts may both be queries and documents. See `filip_similarity`.
    """

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        """Token vectors of captions; what a text has beyond the model's window (77 tokens for CLIP) is left out."""
        return self.encode_queries(texts)

    @property
    def _side(self) -> int:
        config = self.model.config.vision_config  # type: ignore[union-attr]
        return int(config.image_size // config.patch_size)  # type: ignore[union-attr, operator]

    def _n_tokens(self, height: int, width: int) -> int:
        return self._side**2

    def _embed_images(self, images: list[Image]) -> list[Embedded]:
        import torch

        model: Any = self.model
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            hidden = model.vision_model(pixel_values=pixels.to(self.device, model.dtype)).last_hidden_state
            if hasattr(model, "visual_projection"):
                # The first is CLIP's own [CLS].
                patches = model.visual_projection(model.vision_model.post_layernorm(hidden[:, 1:]))
            elif model.vision_model.use_head:
                # SigLIP projects in its attention pooling; of one patch alone it is that patch's projection.
                patches = model.vision_model.head(hidden.reshape(-1, 1, hidden.shape[-1])).reshape(hidden.shape)
            else:
                patches = hidden
            vectors = torch.nn.functional.normalize(patches.float(), dim=-1).cpu().numpy()
        spans = np.indices((self._side, self._side), np.int32).reshape(2, -1).T
        return [Embedded(row, spans) for row in vectors]

    def _embed_texts(self, texts: list[str]) -> list[Embedded]:
        import torch

        model: Any = self.model
        tokenizer = self.processor.tokenizer
        is_clip = hasattr(model, "text_projection")
        inputs = tokenizer(
            texts,
            # SigLIP was trained on texts padded to its full length, and attends to the padding.
            padding="longest" if is_clip else "max_length",
            max_length=model.config.text_config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
            return_offsets_mapping=tokenizer.is_fast,
        )
        project = model.text_projection if is_clip else model.text_model.head
        attention = inputs["attention_mask"].to(self.device) if is_clip else None
        with torch.inference_mode():
            ids = inputs["input_ids"].to(self.device)
            hidden = model.text_model(input_ids=ids, attention_mask=attention).last_hidden_state
            vectors = torch.nn.functional.normalize(project(hidden).float(), dim=-1).cpu().numpy()
        # SigLIP's tokenizer does not say where its tokens stand.
        offsets = np.full((*ids.shape, 2), -1) if "offset_mapping" not in inputs else inputs["offset_mapping"].numpy()
        # Padding, and what opens and closes a text, stand for no word.
        outer = {tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id} - {None}
        is_word = ~np.isin(inputs["input_ids"].numpy(), list(outer))
        return [
            Embedded(row[keep], spans[keep].astype(np.int32))
            for row, spans, keep in zip(vectors, offsets, is_word, strict=True)
        ]


def filip_similarity(queries: TokenBatch, documents: TokenBatch) -> NDArray[np.float32]:
    """FILIP's measure: of each query's tokens the best match in each document, on average.

    It is not symmetric: with images as queries it is image→text, with texts as queries text→image.

    Returns:
        (n_queries, n_documents); nan for a query or a document without tokens.
    """
    found = np.full((len(queries), len(documents)), np.nan, np.float32)
    for i, query in enumerate(queries):
        for j, document in enumerate(documents):
            if len(query) and len(document):
                found[i, j] = (query @ document.T).max(axis=1).mean()
    return found


def read_image(image: str | Path | bytes | Image, what: str = "the image") -> Image:
    """An image in RGB, turned as its camera held it.

    Raises:
        InputError: there is no such file, or it is no image, or a damaged one.
    """
    with _opened(image, what) as opened:
        from PIL import ImageOps

        return ImageOps.exif_transpose(opened).convert("RGB")


def image_header(image: str | Path | bytes | Image, what: str) -> tuple[str | None, tuple[int, int]]:
    """Its format as PIL calls it ("PNG"), and (width, height), read from its first bytes; errors as `read_image`."""
    with _opened(image, what) as opened:
        return opened.format, opened.size


@contextmanager
def _opened(image: str | Path | bytes | Image, what: str) -> Iterator[Image]:
    """The image as PIL opens it; what was opened here is closed again."""
    pillow = require("PIL.Image", extra="images")
    try:
        if isinstance(image, pillow.Image):
            yield image
        elif isinstance(image, (str, Path, bytes)):
            with pillow.open(BytesIO(image) if isinstance(image, bytes) else image) as opened:
                # PIL only warns up to twice its limit: a file of some kilobytes may hold gigabytes of pixels.
                if opened.width * opened.height > (pillow.MAX_IMAGE_PIXELS or math.inf):
                    raise InputError(
                        f"{what} has {opened.width} by {opened.height} pixels, more than PIL's limit of "
                        f"{pillow.MAX_IMAGE_PIXELS:,}: scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS"
                    )
                yield opened
        else:
            raise InputError(f"{what} is a {type(image).__name__}: give a path, the bytes of a file, or a PIL image")
    except FileNotFoundError:
        raise InputError(f"{what}: there is no file {str(image)!r}") from None
    except InputError:
        raise
    # PIL raises SyntaxError for broken PNG chunks, OSError for cut files.
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise InputError(f"{what} is no image that PIL can read, or a damaged one: {error}") from error
