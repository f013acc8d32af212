"""What leaves the toolkit: adapters in PEFT's format, and static merges that plain PEFT loads."""
