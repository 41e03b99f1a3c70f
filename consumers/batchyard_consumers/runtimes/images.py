"""The runtime `image-classification`: an image to the scores of labels."""

from __future__ import annotations

import base64
import binascii
import io
import random
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import torch

from batchyard.errors import InvalidInput
from batchyard_consumers.runtimes.pretrained import Pretrained
from batchyard_consumers.runtimes.sources import origin

MOST_PIXELS = 64_000_000
"""Of one image as sent: a few bytes may claim to be gigabytes of pixels."""

PATTERNS = 8
"""Pictures that other dtypes are compared on."""

Item = tuple[torch.Tensor, int | None]
"""Pixels [channels, height, width] as the model wants them, and how many labels are wanted."""


class ImageClassification(Pretrained):
    """A payload (`{"$payload": id}`), or `{"base64": …}`, in; `{"label", "score"}` out, or `{"labels"}`.

    Any format that Pillow reads. Resized, cropped and scaled as the model's own `preprocessor_config.json` says.
    """

    input_schema: ClassVar[dict[str, Any]] = {
        "type": "object",
        "properties": {"$payload": {"type": "string"}, "base64": {"type": "string"}},
        "minProperties": 1,
        "maxProperties": 1,
        "additionalProperties": False,
    }
    cost_unit = "pixels"
    _head = "AutoModelForImageClassification"
    _processor: Any
    _device: str

    def load(self, device: str) -> None:
        from transformers import AutoImageProcessor

        self._load_module(device)
        self._processor = AutoImageProcessor.from_pretrained(self.source, backend="pil", **origin(self))
        self._device = device

    def preprocess(self, inputs: Sequence[Any], params: dict[str, Any]) -> Sequence[Any]:
        top = self._top(params)
        return [self._item(value, top) for value in inputs]

    def cost(self, item: Item) -> int:
        height, width = item[0].shape[-2:]
        return int(height * width)

    def forward(self, items: Sequence[Item]) -> tuple[torch.Tensor, list[int | None]]:
        """Logits [batch, labels], float32, on the CPU; and how many labels each image wants."""
        pixels = torch.stack([pixels for pixels, _ in items])
        features = {"pixel_values": pixels.to(self._device, self._module.dtype, non_blocking=True)}
        return self._logits(features), [top for _, top in items]

    def postprocess(self, outputs: tuple[torch.Tensor, list[int | None]]) -> Sequence[Any]:
        return self._labelled(*outputs)

    def proofs(self) -> list[Any]:
        return [_pattern(number) for number in range(PATTERNS)]

    def samples(self, cost: int) -> list[Any]:
        """Items to warm up with."""
        from PIL import Image

        pixels = self._pixels(Image.new("RGB", (64, 64)))
        return [(pixels, None)] * max(1, cost // self.cost((pixels, None)))

    def shapes(self) -> Iterable[list[Any]]:
        """One image, and several."""
        return ([self.samples(1)[0]] * rows for rows in (1, 3))

    def _item(self, value: Any, top: int | None) -> Item | InvalidInput:
        from PIL import Image, UnidentifiedImageError

        try:
            image = Image.open(io.BytesIO(_bytes(value)))
            if image.width * image.height > MOST_PIXELS:
                return InvalidInput(
                    f"the image has {image.width} x {image.height} pixels; at most {MOST_PIXELS:,} are taken"
                )
            return self._pixels(image.convert("RGB")), top
        except InvalidInput as misfit:
            return misfit
        except UnidentifiedImageError:
            return InvalidInput("the payload is no image of a known format")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # what Pillow raises
            return InvalidInput(f"the image cannot be read: {error}")

    def _pixels(self, image: Any) -> torch.Tensor:
        pixels: torch.Tensor = self._processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels


def _pattern(number: int) -> bytes:
    """A picture of coarse and fine blocks of colour, another for each number."""
    from PIL import Image

    draw = random.Random(number)
    image = Image.new("RGB", (64, 64))
    for size in (64, 16, 4):
        for _ in range(8):
            colour = tuple(draw.randrange(256) for _ in range(3))
            image.paste(colour, (x := draw.randrange(64), y := draw.randrange(64), x + size, y + size))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, dict) and isinstance(value.get("base64"), str):
        try:
            return base64.b64decode(value["base64"], validate=True)
        except binascii.Error as error:
            raise InvalidInput(f"base64 is not valid: {error}") from error
    raise InvalidInput('an input is {"$payload": id} or {"base64": …}')
