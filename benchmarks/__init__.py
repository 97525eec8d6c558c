"""Side-by-side measurements of the checkpoint engine: peers, ceilings and ours, by one protocol."""
