"""Your own table in one command: read it, find out what it is, write the contract. It works on the rooms from above and is part of no stage."""
