"""The networks: attention.py has the three equations, backbones.py what they read, networks.py `create_model`."""
