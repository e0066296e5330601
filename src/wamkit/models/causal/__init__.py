"""The causal family: what RepWAM and LingBot-VA share."""
