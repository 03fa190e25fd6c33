"""Encoders that read images: ColPali and its relatives for pages, CLIP and SigLIP for pictures and captions.

An image becomes one vector per patch. The span of a patch is its (row, column) in the grid of patches, or (-1, -1) for
tokens that stand for no patch.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
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
from manyvec.models.progress import current_listener
from manyvec.models.protocol import ImageReader, LoadedEncoder
from manyvec.models.text import weight_samples
from manyvec.models.windowed import check_strings
from manyvec.models.windows import Spans, batches_of
from manyvec.vectors.batch import TokenBatch, offsets_of

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

# Images decoded at a time: about 200 MB of pixels for pages at 150 dots per inch.
_DECODED_PAGES = 32


class EncodedInput(NamedTuple):
    """Token vectors of one text or image, (n_tokens, dim), and their spans, (n_tokens, 2)."""

    vectors: NDArray[np.float32]
    spans: Spans


class ImageEncoder(LoadedEncoder, ABC):
    """Base of the models that read images and texts, as an `ImageReader`. Threads may share it.

    Args:
        model: Returns token vectors for the inputs that `processor` prepares.
        processor: The processor of the checkpoint: tokenizer and image preprocessing.
        name: The name under which `load_encoder` finds the model. Indexes store it.
        batch_tokens: Maximum number of tokens in a forward pass. An image with more is encoded by itself. Default:
            4,096 on a CPU, 32,768 elsewhere.
    """

    def __init__(self, model: torch.nn.Module, processor: Any, *, name: str, batch_tokens: int | None = None) -> None:
        super().__init__(name)
        self.model = model.eval()
        self.processor = processor
        self.batch_tokens = batch_tokens or (4096 if self.device == "cpu" else 32768)

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
        """Hash of the tokenizer, the image preprocessing, the prompts and `weight_samples`."""
        digest = hashlib.blake2b(type(self).__name__.encode(), digest_size=16)
        processor = self.processor
        tokenizer = processor.tokenizer.get_vocab()
        prompts = [getattr(processor, name, None) for name in ("query_prefix", "visual_prompt_prefix", "image_seq_len")]
        pixels = json.loads(processor.image_processor.to_json_string())
        # The class name depends on whether torchvision is installed.
        pixels = {name: value for name, value in pixels.items() if not name.endswith(("_type", "_class"))}
        digest.update(json.dumps([tokenizer, prompts, pixels], sort_keys=True).encode())
        for sample in weight_samples(self.model):
            digest.update(sample)
        return digest.hexdigest()

    @property
    def crops_images(self) -> bool:
        """Whether the model reads only the central square of an image, as CLIP does."""
        return bool(getattr(self.processor.image_processor, "do_center_crop", False))

    def encode_images(self, images: Sequence[str | Path | bytes | Image]) -> TokenBatch:
        """Return one vector per patch of each image, in order.

        Args:
            images: Paths, the bytes of image files, or opened PIL images.

        Raises:
            InputError: An image cannot be read. The message says which one.
        """
        sizes = [image_header(image, f"image {i}")[1] for i, image in enumerate(images)]
        counts = [self._n_tokens(height, width) for width, height in sizes]
        encoded: list[EncodedInput | None] = [None] * len(sizes)
        for batch in batches_of(counts, self.batch_tokens):
            pixels = [read_image(images[i], f"image {i}") for i in batch]
            with self._lock:
                for i, result in zip(batch, self._embed_images(pixels), strict=True):
                    encoded[i] = result
        return self._to_batch(encoded)

    def encode_queries(self, queries: Sequence[str]) -> TokenBatch:
        """Return the token vectors of each query; see `Encoder`."""
        check_strings(queries, self.name)
        encoded: list[EncodedInput | None] = [None] * len(queries)
        # A token covers at least one character.
        for batch in batches_of([len(query) + 32 for query in queries], self.batch_tokens):
            with self._lock:
                for i, result in zip(batch, self._embed_texts([queries[i] for i in batch]), strict=True):
                    encoded[i] = result
        return self._to_batch(encoded)

    @abstractmethod
    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        """Return the token vectors of each document; see `Encoder`."""

    @abstractmethod
    def _n_tokens(self, height: int, width: int) -> int:
        """Return an upper bound on the number of tokens of an image of this size."""

    @abstractmethod
    def _embed_images(self, images: list[Image]) -> list[EncodedInput]: ...

    @abstractmethod
    def _embed_texts(self, texts: list[str]) -> list[EncodedInput]: ...

    def _to_batch(self, encoded: Sequence[EncodedInput | None]) -> TokenBatch:
        parts = [part for part in encoded if part is not None]
        if not parts:
            return TokenBatch(np.empty((0, self.dim), np.float32), offsets_of([]), np.empty((0, 2), np.int32))
        vectors = np.concatenate([part.vectors for part in parts])
        spans = np.concatenate([part.spans for part in parts])
        try:
            return TokenBatch(vectors, offsets_of([len(part.vectors) for part in parts]), spans, allow_empty=True)
        except ShapeError as error:
            raise EncoderError(f"{self.name} returned unusable vectors: {error}") from error


class PageEncoder(ImageEncoder):
    """ColPali, ColQwen2, ColQwen2.5 and ColModernVBert: documents are page images, queries are strings.

    Args:
        model: See `ImageEncoder`.
        processor: See `ImageEncoder`.
        is_adapted: Whether the model has LoRA adapters trained with colpali-engine, whose Qwen prompt does not end in a
            line break.
    """

    def __init__(self, model: torch.nn.Module, processor: Any, *, is_adapted: bool = False, **options: Any) -> None:
        super().__init__(model, processor, **options)
        self._is_adapted = is_adapted

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        """Raise `InputError`: these models read documents as images and text only as queries."""
        raise InputError(
            f"{self.name} reads documents as images: use encode_images. For text documents load a text model "
            "(see `manyvec models`)"
        )

    def _n_tokens(self, height: int, width: int) -> int:
        counts = self.processor._get_num_multimodal_tokens(image_sizes=[(height, width)])["num_image_tokens"]
        return int(counts[0])

    def _embed_images(self, images: list[Image]) -> list[EncodedInput]:
        inputs = self.processor.process_images(images=images)
        grids = inputs.get("image_grid_thw")
        vectors, attention = self._forward(inputs)
        encoded = []
        for i, (ids, row, mask) in enumerate(zip(inputs["input_ids"], vectors, attention, strict=True)):
            grid = None if grids is None else (grids[i, 1:] // self.processor.image_processor.merge_size).tolist()
            encoded.append(EncodedInput(row[mask], self._grid_spans(ids.numpy()[mask], grid)))
        return encoded

    def _embed_texts(self, texts: list[str]) -> list[EncodedInput]:
        tokenizer = self.processor.tokenizer
        head, tail = self.processor.query_prefix, self.processor.query_augmentation_token * 10
        is_colpali = hasattr(self.processor, "image_seq_length")
        if is_colpali:
            head, tail = tokenizer.bos_token + head, tail + "\n"
        if "image_grid_thw" in self.processor.model_input_names and not self._is_adapted:  # ColQwen2
            tail += "\n"
        whole = [f"{head}{text}{tail}" for text in texts]
        options = {"padding": "longest", "return_tensors": "pt", "return_offsets_mapping": True}
        # Without token types PaliGemma reads a padded batch causally, and vectors would depend on their batch.
        inputs = tokenizer(whole, return_token_type_ids=is_colpali, **options)
        offsets = inputs.pop("offset_mapping").numpy().astype(np.int32) - len(head)
        vectors, attention = self._forward(inputs)
        encoded = []
        for text, row, spans, mask in zip(texts, vectors, offsets, attention, strict=True):
            kept = spans[mask]
            kept[(kept[:, 0] < 0) | (kept[:, 1] > len(text)) | (kept[:, 0] == kept[:, 1])] = -1
            encoded.append(EncodedInput(row[mask], kept))
        return encoded

    def _forward(self, inputs: Any) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Return unit vectors, (n, n_tokens, dim), and which tokens are not padding, (n, n_tokens)."""
        import torch

        kept = {name: value.to(self.device) for name, value in inputs.items() if name != "labels"}
        if "pixel_values" in kept:
            kept["pixel_values"] = kept["pixel_values"].to(next(self.model.parameters()).dtype)
        with torch.inference_mode():
            output = self.model(**kept)
        embeddings = output if isinstance(output, torch.Tensor) else output.embeddings
        return embeddings.float().cpu().numpy(), inputs["attention_mask"].bool().numpy()

    def _grid_spans(self, ids: NDArray[np.int64], grid: Sequence[int] | None) -> Spans:
        """Return the (row, column) of each token's patch.

        Args:
            ids: (n_tokens,) token ids of one page.
            grid: Number of rows and columns if the processor reports them; else the grid is square or tiled.
        """
        spans = np.full((len(ids), 2), -1, np.int32)
        positions = np.flatnonzero(ids == self.processor.image_token_id)
        if grid is None and hasattr(self.processor, "image_seq_len"):
            return self._tile_spans(ids, positions, spans)
        rows, columns = grid or [math.isqrt(len(positions))] * 2
        if rows * columns == len(positions):
            spans[positions] = np.indices((rows, columns), np.int32).reshape(2, -1).T
        return spans

    def _tile_spans(self, ids: NDArray[np.int64], positions: NDArray[np.int64], spans: Spans) -> Spans:
        """Fill in the spans of ColModernVBert, which cuts a large page into tiles and adds a small copy of the page.

        A tile such as `<row_2_col_1>` is announced by that name before its patches; the small copy has no spans.
        """
        n_patches = self.processor.image_seq_len
        side = math.isqrt(n_patches)
        tiles = positions.reshape(-1, n_patches)
        inside = np.indices((side, side), np.int32).reshape(2, -1).T
        for tile in tiles:
            # The name of the tile precedes it, as one token or several.
            name = self.processor.tokenizer.decode(ids[max(0, tile[0] - 12) : tile[0]])
            cell = re.search(r"<row_(\d+)_col_(\d+)>$", name.replace(" ", ""))
            if cell:
                spans[tile] = inside + side * (np.array(cell.groups(), np.int32) - 1)
            elif len(tiles) == 1:
                spans[tile] = inside
        return spans


class ImageTextEncoder(ImageEncoder):
    """CLIP and SigLIP with one vector per token, as in FILIP: patches and words through the model's projections.

    Images and texts can both be queries and documents. See `filip_similarity`.
    """

    def encode_documents(self, texts: Sequence[str]) -> TokenBatch:
        """Return the token vectors of captions, truncated to the model's window (77 tokens for CLIP)."""
        return self.encode_queries(texts)

    @property
    def _side(self) -> int:
        config = self.model.config.vision_config  # type: ignore[union-attr]
        return int(config.image_size // config.patch_size)  # type: ignore[union-attr, operator]

    def _n_tokens(self, height: int, width: int) -> int:
        return self._side**2

    def _embed_images(self, images: list[Image]) -> list[EncodedInput]:
        import torch

        from manyvec.models.filip import patch_vectors

        model: Any = self.model
        pixels = self.processor.image_processor(images, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            vectors = patch_vectors(model, pixels.to(self.device, model.dtype)).cpu().numpy()
        spans = np.indices((self._side, self._side), np.int32).reshape(2, -1).T
        return [EncodedInput(row, spans) for row in vectors]

    def _embed_texts(self, texts: list[str]) -> list[EncodedInput]:
        import torch

        from manyvec.models.filip import word_mask, word_vectors

        model: Any = self.model
        tokenizer = self.processor.tokenizer
        is_clip = hasattr(model, "text_projection")
        inputs = tokenizer(
            texts,
            # SigLIP was trained on texts padded to the full length and attends to the padding.
            padding="longest" if is_clip else "max_length",
            max_length=model.config.text_config.max_position_embeddings,
            truncation=True,
            return_tensors="pt",
            return_offsets_mapping=tokenizer.is_fast,
        )
        attention = inputs["attention_mask"].to(self.device) if is_clip else None
        with torch.inference_mode():
            vectors = word_vectors(model, inputs["input_ids"].to(self.device), attention).cpu().numpy()
        # SigLIP's tokenizer does not report the characters of its tokens.
        ids = inputs["input_ids"]
        offsets = np.full((*ids.shape, 2), -1) if "offset_mapping" not in inputs else inputs["offset_mapping"].numpy()
        is_word = word_mask(tokenizer, ids).numpy()
        return [
            EncodedInput(row[keep], spans[keep].astype(np.int32))
            for row, spans, keep in zip(vectors, offsets, is_word, strict=True)
        ]


def filip_similarity(queries: TokenBatch, documents: TokenBatch) -> NDArray[np.float32]:
    """Compute FILIP's similarity: the best match in the document for each query token, averaged.

    It is not symmetric: images as queries give the image-to-text similarity, texts as queries the text-to-image one.
    See https://arxiv.org/abs/2111.07783.

    Returns:
        (n_queries, n_documents) float32; NaN for a query or a document without tokens.
    """
    similarities = np.full((len(queries), len(documents)), np.nan, np.float32)
    for i, query in enumerate(queries):
        for j, document in enumerate(documents):
            if len(query) and len(document):
                similarities[i, j] = (query @ document.T).max(axis=1).mean()
    return similarities


def read_image(image: str | Path | bytes | Image, what: str = "the image") -> Image:
    """Read an image as RGB, rotated as its EXIF orientation says.

    Args:
        image: A path, the bytes of a file, or an opened PIL image.
        what: Names the image in errors.

    Raises:
        InputError: The file does not exist, is not an image, is damaged, or has too many pixels.
    """
    with _opened(image, what) as opened:
        from PIL import ImageOps

        return ImageOps.exif_transpose(opened).convert("RGB")


def image_bytes(image: bytes | Path, what: str) -> bytes:
    """Return the bytes of an image file, read from a path if it is one.

    Raises:
        InputError: The file cannot be read; the message starts with `what`.
    """
    try:
        return image.read_bytes() if isinstance(image, Path) else image
    except OSError as error:
        raise InputError(f"{what} cannot be read: {error}") from error


def encode_pages(encoder: ImageReader, images: Sequence[bytes], names: Sequence[str]) -> TokenBatch:
    """Decode and encode image files, a few at a time, so that memory never holds the pixels of all.

    Args:
        encoder: A model that reads images.
        images: (n,) bytes of files, at least one.
        names: (n,) names of the images in errors.

    Raises:
        InputError: An image is damaged or has too many pixels; see `read_image`.
    """
    parts = []
    for start in range(0, len(images), _DECODED_PAGES):
        part = range(start, min(start + _DECODED_PAGES, len(images)))
        # Decoded here, so that an error names the image.
        parts.append(encoder.encode_images([read_image(images[i], names[i]) for i in part]))
        current_listener()(parts[-1].n_tokens, len(part) / len(images))
    return TokenBatch.concatenate(parts)


def image_header(image: str | Path | bytes | Image, what: str) -> tuple[str | None, tuple[int, int]]:
    """Return the format ("PNG") and the (width, height) of an image from its first bytes. Errors as `read_image`."""
    with _opened(image, what) as opened:
        return opened.format, opened.size


@contextmanager
def _opened(image: str | Path | bytes | Image, what: str) -> Iterator[Image]:
    """Open an image with PIL, and close it again if it was opened here."""
    pillow = require("PIL.Image", extra="images")
    try:
        if isinstance(image, pillow.Image):
            yield image
        elif isinstance(image, (str, Path, bytes)):
            with pillow.open(BytesIO(image) if isinstance(image, bytes) else image) as opened:
                # Up to twice its limit PIL only warns, but a file of a few kilobytes can decode to gigabytes.
                if opened.width * opened.height > (pillow.MAX_IMAGE_PIXELS or math.inf):
                    raise InputError(
                        f"{what} has {opened.width} × {opened.height} pixels, more than PIL's limit of "
                        f"{pillow.MAX_IMAGE_PIXELS:,}: scale it down, or raise PIL.Image.MAX_IMAGE_PIXELS"
                    )
                yield opened
        else:
            raise InputError(f"{what} must be a path, the bytes of a file or a PIL image, got {type(image).__name__}")
    except FileNotFoundError:
        raise InputError(f"{what}: the file {str(image)!r} does not exist") from None
    except InputError:
        raise
    # PIL raises SyntaxError for broken PNG chunks, OSError for truncated files.
    except (OSError, ValueError, SyntaxError, pillow.DecompressionBombError, pillow.DecompressionBombWarning) as error:
        raise InputError(f"{what} is damaged or not an image that PIL can read: {error}") from error
