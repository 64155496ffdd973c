"""`mapengine view`: what is in a file or a folder of a scene, and the server that shows it."""
