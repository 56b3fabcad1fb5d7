"""All that is wrong with a data folder: looked for, kept on disk, judged and told."""
