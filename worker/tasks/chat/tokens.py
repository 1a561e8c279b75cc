"""How many tokens a call will take, before anybody has counted them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

#: Bytes of UTF-8 that are reckoned to make one token. English has about four and code three; of most other scripts a character
#: has two or three and is about one token. So the estimate is rather too high, and what is too much comes back when it settles.
BYTES_A_TOKEN = 3
#: Tokens of an image, whatever its size: its text is an address or base64, which says nothing about them.
IMAGE = 1500

#: Where the API says how many tokens an answer may have, the name of today first.
BOUNDS = ("max_completion_tokens", "max_tokens")


def of_text(text: str) -> int:
    """Return the tokens of a text: a third of its bytes, rounded up."""
    return -(-len(text.encode(errors="surrogatepass")) // BYTES_A_TOKEN)


def of_input(messages: Sequence[Any], options: Mapping[str, Any]) -> int:
    """Return the tokens of what is sent: messages and options as JSON, and `IMAGE` for each image.

    What JSON puts around a message stands for what the model's own format puts around it.
    """
    images = 0

    def without_images(part: Any) -> Any:
        nonlocal images
        if isinstance(part, Mapping) and part.get("type") == "image_url":
            images += 1
            return ""
        if isinstance(part, Mapping):
            return {name: without_images(value) for name, value in part.items()}
        return [without_images(value) for value in part] if isinstance(part, list | tuple) else part

    text = json.dumps([without_images(messages), without_images(options)], ensure_ascii=False)
    return of_text(text) + images * IMAGE


def of_output(options: Mapping[str, Any]) -> int:
    """Return the most tokens an answer may have: the bound in the options, for each of the `n` answers."""
    bound: int = next(options[name] for name in BOUNDS if options.get(name) is not None)
    return bound * int(options.get("n") or 1)
