"""How much each channel matters: one file a criterion, registered in ``criteria``."""
