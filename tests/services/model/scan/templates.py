"""Chat templates in the forms that well-known model families use, and hostile ones."""

LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}{%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}{%- set messages = messages[1:] %}
{%- else %}{%- set system_message = "" %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}{{- "Environment: ipython\\n" }}
    {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\\n\\n" }}{%- endfor %}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}{{- system_message }}{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}{{- raise_exception("This model only supports one call!") }}{%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}{{- tool_call.arguments | tojson }}{{- "}" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

QWEN = """{%- macro render_item(item) %}{{ item.type ~ ': ' ~ item.text }}{%- endmacro %}
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools>\\nreturn a json object: {\\"name\\": <function-name>}<|im_end|>\\n" }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string
        and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if '</think>' in content %}
        {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + render_item({'type': 'a', 'text': 'b'}) }}
    {%- if loop.first or (not loop.last and messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
{%- endfor %}"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}{%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
    {%- if message["role"] == "user" and message == user_messages[-1] %}
        {%- for tool in tools %}
            {%- for key, val in tool.function.items() if key != "return" %}
                {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}{%- else %}{{- val|tojson }}{%- endif %}
            {%- endfor %}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
        {%- endfor %}
    {%- endif %}
    {%- if message["id"] is defined and message["id"]|length != 9 %}{%- continue %}{%- endif %}
    {% generation %}{{- " " + message["content"]|trim + eos_token }}{% endgeneration %}
{%- endfor %}"""

INNOCENT = {"llama3": LLAMA3, "qwen": QWEN, "mistral": MISTRAL}

HARMFUL = {
    "class": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "item": "{{ messages['__class__'] }}",
    "attr": "{{ messages|attr('x') }}",
    "map": "{{ messages|map(attribute='__class__')|list }}",
    "joined": "{{ messages['__cla' ~ 'ss__'] }}",
    "escaped": "{{ messages['\\x5f\\x5fclass\\x5f\\x5f'] }}",
    "underscores": "{% set u = '__' %}{{ messages[u ~ name ~ u] }}",
    "globals": "{{ lipsum.__globals__['os'].popen('id').read() }}",
    "cycler": "{{ cycler.next }}",
    "format": "{{ '{0.__class__}'.format(messages) }}",
    "format_field": "{{ '{0.secret}'.format(messages) }}",
    "percent": "{{ '%c%c'|format(95, 95) }}",
    "include": "{% include 'other' %}",
    "import": "{% import 'other' as o %}",
    "range": "{% for i in range(99999999999) %}a{% endfor %}",
    "multiply": "{{ 'a' * 9999999999 }}",
    "private": "{{ messages._secret }}",
    "eval": "{{ messages.eval('1') }}",
    "frame": "{{ messages.gi_frame.f_back }}",
}
