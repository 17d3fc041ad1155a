"""`ijepa-ds doctor`: what would stop a run on its hosts, looked for before it starts (`docs/launch.md`)."""
