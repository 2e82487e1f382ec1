"""YAML that somebody else has written: plain values, as many as are there."""

from __future__ import annotations

from typing import Any

import yaml

#: of a file; configs and hints are a few kilobytes
MAX_BYTES = 4 * 2**20


class _Loader(yaml.SafeLoader):
    """Refuses aliases, of which a few lines can name more values than any memory holds, and keys that are there twice,
    of which the last would be taken without a word."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.YAMLError(f"the key {key.value!r} is there twice (line {key.start_mark.line + 1})")
                seen.add((key.tag, key.value))
        return node

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases (*{self.peek_event().anchor}) are refused; write the values out")
        return super().compose_node(parent, index)


def load(content: bytes) -> Any:
    """Lists, dicts, strings, numbers, dates.

    Raises:
        yaml.YAMLError: for everything that is wrong with the content: tags, aliases, keys that are there twice,
            encoding, depth, size.
    """
    if len(content) > MAX_BYTES:
        raise yaml.YAMLError(f"{len(content):,} bytes are more than the {MAX_BYTES:,} that are read")
    try:
        return yaml.load(content, _Loader)
    except (ValueError, RecursionError, AttributeError) as error:  # impossible dates, endless digits, 1,000 brackets
        raise yaml.YAMLError(str(error)) from None
