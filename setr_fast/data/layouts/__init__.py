"""Where the samples of a split lie: public sets, split lists, folders, patterns. Opens no picture."""
