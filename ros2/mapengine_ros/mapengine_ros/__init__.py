"""A ROS 2 node that reconstructs what cameras see with a mapengine engine; only ``node`` and ``fields`` need ROS."""
