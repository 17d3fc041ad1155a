"""`ijepa-ds doctor`: checks hosts, data and configuration before a run starts (`docs/launch.md`)."""
