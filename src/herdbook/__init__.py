"""herdbook: learning from recorded experience and for many agents."""
