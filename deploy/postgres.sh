# Runs once, when the volume is empty: creates a database for each service, and a user with access to no other.
for name in airflow mlflow feast; do
    psql -q -v ON_ERROR_STOP=1 -v name="$name" --username "${POSTGRES_USER:-postgres}" --dbname postgres <<SQL
\getenv password ${name^^}_DB_PASSWORD
CREATE ROLE :"name" LOGIN PASSWORD :'password';
CREATE DATABASE :"name" OWNER :"name" ENCODING 'UTF8' TEMPLATE template0;
REVOKE CONNECT ON DATABASE :"name" FROM PUBLIC;
SQL
done
