{{ config(schema='sales', alias='orders_of_today') }}
select 10 as order_id, 1 as line, customer_id from {{ ref('customers') }} where customer_id = 1
union all
select 10, 2, customer_id from {{ ref('customers') }} where customer_id = 1
