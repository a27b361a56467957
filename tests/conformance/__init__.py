"""Third-party Realtime clients, unmodified, against the real server.

`clients/` holds small programs, one for each client, that run where the client is installed and
tell on stdout what happened; `ground` starts the server and what they need; `travel` runs them;
`verdict` says what of it was right; `table` prints that for people. The Python clients live in an
environment of their own, which `install` makes.
"""
