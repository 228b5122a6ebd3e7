"""The original project's data set: its file and column names, and its pickle of keypoints."""
