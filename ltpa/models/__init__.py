"""The networks: the three equations of attention, the trunks, and `create_model`."""
