#!/bin/sh
# The image runs this once, on an empty data folder: an account for the service that owns its
# database and nothing else.
psql --no-psqlrc -v ON_ERROR_STOP=1 -v password="$(cat /etc/footfall/footfall)" -U postgres <<'SQL'
CREATE ROLE footfall LOGIN PASSWORD :'password';
CREATE DATABASE footfall OWNER footfall;
SQL
