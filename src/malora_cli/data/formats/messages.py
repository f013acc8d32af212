"""Conversations as OpenAI and Hugging Face write them, of any number of turns, each answer supervised.

A row such as ``{"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}, {"role":
"user", "content": "Twice that?"}, {"role": "assistant", "content": "10"}]}`` is supervised at ``5`` and ``10``. A first
message of the role ``system`` is the row's own system prompt. Tool calls, what tools answer and a column ``tools``
reach the chat template as they are; an answer with ``"weight": 0``, ``"train": false`` or ``"loss": false`` is not
trained. Where conversations end with the user, as in preference data, a mix names the column of the ``answer``: a text,
a message or a list that ends with one (``columns: {answer: chosen}``). A list of texts is a conversation that the user
begins; one text is parted where a line begins with one of ``speakers`` (``{"Human:": user, "Assistant:": assistant}``).
"""

from __future__ import annotations

from malora_cli.data.formats._conversation import conversations_in

FORMAT = conversations_in("messages")
