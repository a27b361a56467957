"""What this server does beside the engine of a call, by attendants who follow the call.

Its own functions run here (`toolbox`, `server_tools`), a chat beside the call decides on functions
(`side_tools`), writes down what the user said (`transcriber`) and answers out of band (`asides`).
Nobody here may fail a call.
"""
