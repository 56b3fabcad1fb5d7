"""One file as arrays: signatures, pictures and masks, array files, MATLAB, NIfTI, tables. Knows no data set."""
