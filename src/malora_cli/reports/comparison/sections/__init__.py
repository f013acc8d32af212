"""One file a section, each with one object ``SECTION``; found by looking into this folder."""
